import itertools
from math import prod
from types import SimpleNamespace

import pytest
import torch
from helpers.oracles import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fpt_plugin.functional import (
    attention,
    budget,
    checks,
    mixture_attention,
    paths,
    reference,
)

NAMES = ('query', 'key', 'value', 'mixture_weights')
EAGER = paths.EAGER_MAX_SCORES
both_similarities = pytest.mark.parametrize('similarity',
                                            ['dot', 'neg_euclid'])


def operands(batch=2, parts=2, lq=9, lk=7, depth=3, channels=4, *, seed=0,
             dtype=torch.float32):
    """query, key, value and weights, the last one a softmax over parts."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [
        t.to(dtype) for t in (randn(batch, parts, lq, depth),
                              randn(batch, parts, lk, depth),
                              randn(batch, lk, channels),
                              randn(batch, parts).softmax(dim=1))
    ]


def run(function, inputs, upstream, **kwargs):
    """The output and the gradients of all inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = function(*leaves, **kwargs)
    return out, torch.autograd.grad(out, leaves, upstream.to(out.dtype))


def run_oracle(inputs, upstream, **kwargs):
    return run(reference.mixture_attention, [t.double() for t in inputs],
               upstream, **kwargs)


def upstream_of(inputs, seed=1):
    query, _, value, _ = inputs
    return torch.randn(
        query.shape[0],
        query.shape[2],
        value.shape[2],
        generator=torch.Generator().manual_seed(seed))


def assert_agrees(got, want, tolerance):
    """Output and gradients differ by ``tolerance`` relative to their norms.

    One of them may cancel to next to nothing (a single output, or a query's
    gradient where there are few keys), and the digits lost are those of what
    cancelled. So no norm counts for less than a tenth of the largest one.
    """
    got, want = ([out, *grads] for out, grads in (got, want))
    floor = 0.1 * max(t.norm().item() for t in want)
    for name, g, w in zip(('output', *NAMES), got, want):
        assert relative_error(g, w, floor) <= tolerance, name


class Recorder(TorchDispatchMode):
    """Counts softmaxes and notes the largest tensor that an operator makes."""

    def __init__(self):
        super().__init__()
        self.softmaxes = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.softmax.int_out:
            self.softmaxes += 1
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.fixture
def score_budget(monkeypatch):
    """Sets how many scores of a part may exist at once."""

    def set_budget(scores):
        assert 'cpu' in budget.SCORE_BUDGET
        monkeypatch.setitem(budget.SCORE_BUDGET, 'cpu', scores)

    return set_budget


@pytest.fixture(autouse=True)
def _chunks(monkeypatch):
    """Chunks are what is tested here, and maps this small would not take them."""
    monkeypatch.setattr(paths, 'EAGER_MAX_SCORES', {})


@pytest.fixture
def small_maps(monkeypatch):
    """The table of the paths as it is."""
    monkeypatch.setattr(paths, 'EAGER_MAX_SCORES', EAGER)


sizes = st.integers(1, 40)
widths = st.integers(1, 8)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    parts=st.integers(1, 4),
    lq=sizes,
    lk=sizes,
    depth=widths,
    channels=widths,
    similarity=st.sampled_from(checks.SIMILARITIES),
    scale=st.sampled_from([None, 1.0, 0.3]),
    seed=st.integers(0, 99))
def test_agrees_with_the_formula(batch, parts, lq, lk, depth, channels,
                                 similarity, scale, seed):
    inputs = operands(batch, parts, lq, lk, depth, channels, seed=seed)
    upstream = upstream_of(inputs)
    options = dict(similarity=similarity, scale=scale)
    got = run(mixture_attention, inputs, upstream, **options)
    assert got[0].dtype == torch.float32
    assert_agrees(got, run_oracle(inputs, upstream, **options), 1e-5)


@both_similarities
@pytest.mark.parametrize('scale', [None, 1.7])
@pytest.mark.parametrize('parts', [1, 3])
def test_gradcheck(similarity, scale, parts, score_budget):
    inputs = operands(
        batch=2, parts=parts, lq=5, lk=4, depth=2, channels=3,
        dtype=torch.float64)
    score_budget(2 * parts * 4 * 2)  # two queries a chunk, one in the last

    def function(*tensors):
        return mixture_attention(*tensors, similarity=similarity, scale=scale)

    assert torch.autograd.gradcheck(
        function, [t.requires_grad_() for t in inputs])


@both_similarities
@pytest.mark.parametrize(
    'scores, chunks',
    [
        (1, 23),  # less than one query's scores: still a query at a time
        (2 * 11, 23),
        (2 * 11 * 5, 5),  # 23 = 4 * 5 + 3
        (2 * 11 * 6 - 1, 5),
        (2 * 11 * 23, 1)
    ])
def test_result_does_not_depend_on_chunks(similarity, scores, chunks,
                                          score_budget):
    inputs = operands(batch=2, parts=3, lq=23, lk=11)
    upstream = upstream_of(inputs)
    whole = run(mixture_attention, inputs, upstream, similarity=similarity)
    score_budget(scores)
    with Recorder() as recorder:
        chunked = run(
            mixture_attention, inputs, upstream, similarity=similarity)
    # Each chunk's maps are made in the forward and again in the backward, part
    # by part.
    assert recorder.softmaxes == 2 * 3 * chunks
    assert_agrees(chunked, whole, 1e-5)


@both_similarities
def test_scores_stay_within_the_budget(similarity, score_budget):
    inputs = operands(batch=1, parts=2, lq=60, lk=50)
    upstream = upstream_of(inputs)
    most = 1000
    score_budget(most)
    with Recorder() as recorder:
        run(mixture_attention, inputs, upstream, similarity=similarity)
    assert max(t.numel() for t in inputs) <= most < 60 * 50
    assert recorder.largest <= most


@both_similarities
def test_saves_nothing_but_its_inputs(similarity):
    inputs = [t.requires_grad_() for t in operands(lq=40, lk=30)]
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = mixture_attention(*inputs, similarity=similarity)
    assert out.requires_grad
    storages = {t.untyped_storage().data_ptr() for t in inputs}
    assert {t.untyped_storage().data_ptr() for t in saved} == storages
    assert max(t.numel() for t in saved) < 40 * 30


def transposed(tensor):
    """The same numbers, the last two dimensions exchanged in memory."""
    return tensor.transpose(-2, -1).contiguous().transpose(-2, -1)


@both_similarities
def test_memory_layout_is_free(similarity):
    inputs = operands()
    upstream = upstream_of(inputs)
    strided = [transposed(t) for t in inputs]
    assert not any(t.is_contiguous() for t in strided)
    assert_agrees(
        run(mixture_attention, strided, transposed(upstream),
            similarity=similarity),
        run(mixture_attention, inputs, upstream, similarity=similarity), 1e-6)


@both_similarities
def test_expanded_inputs(similarity):
    inputs = [t[:1].expand(3, *t.shape[1:]) for t in operands()]
    upstream = upstream_of(inputs)
    assert_agrees(
        run(mixture_attention, inputs, upstream, similarity=similarity),
        run_oracle(inputs, upstream, similarity=similarity), 1e-5)


@both_similarities
def test_inputs_are_left_as_they_were(similarity):
    inputs = operands()
    before = [t.clone() for t in inputs]
    upstream = upstream_of(inputs)
    run(mixture_attention, inputs, upstream, similarity=similarity)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before))
    assert torch.equal(upstream, upstream_of(inputs))


@both_similarities
@pytest.mark.parametrize('empty', ['batch', 'lq'])
def test_no_image_or_no_query(similarity, empty):
    inputs = operands(**{empty: 0})
    upstream = upstream_of(inputs)
    out, grads = run(mixture_attention, inputs, upstream,
                     similarity=similarity)
    assert out.shape == upstream.shape and out.numel() == 0
    for tensor, grad in zip(inputs, grads):
        assert grad.shape == tensor.shape
        assert not grad.any()


@both_similarities
def test_one_key_is_returned_whatever_the_query(similarity):
    inputs = operands(lk=1)
    upstream = upstream_of(inputs)
    out, grads = run(mixture_attention, inputs, upstream,
                     similarity=similarity)
    value = inputs[2]
    assert relative_error(out, value.expand_as(out)) <= 1e-6
    assert not grads[0].any() and not grads[1].any()


chunked_and_eager = pytest.mark.parametrize('path', ['chunked', 'eager'])


@both_similarities
@chunked_and_eager
def test_a_common_offset_costs_no_digits(similarity, path):
    """Squared norms of 1e6 would leave one digit of a difference of 1."""
    inputs = operands()
    query, key = inputs[:2]
    key += 1000
    if similarity == 'neg_euclid':
        query += 1000
    upstream = upstream_of(inputs)
    # For the dot product the query's gradient is a small difference of large
    # sums in the formula as well; float64 has digits to spare.
    assert_agrees(
        run(mixture_attention, inputs, upstream, similarity=similarity,
            path=path),
        run_oracle(inputs, upstream, similarity=similarity), 1e-5)


@both_similarities
@chunked_and_eager
def test_large_scores_are_one_hot_and_finite(similarity, path):
    inputs = operands()
    inputs[0], inputs[1] = inputs[0] * 1e3, inputs[1] * 1e3
    upstream = upstream_of(inputs)
    out, grads = run(mixture_attention, inputs, upstream,
                     similarity=similarity, path=path)
    assert all(g.isfinite().all() for g in grads)
    want, _ = run_oracle(inputs, upstream, similarity=similarity)
    assert relative_error(out, want) <= 1e-5


# One rounding of a result, norm-wise, with room for a factor of two.
low_precision = pytest.mark.parametrize('dtype, tolerance',
                                        [(torch.bfloat16, 2**-8),
                                         (torch.float16, 2**-11)])


@both_similarities
@low_precision
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('small', [False, True])
def test_low_precision_inputs(similarity, dtype, tolerance, autocast, small,
                              monkeypatch):
    """Only the results are rounded: what is between is float32."""
    monkeypatch.setattr(paths, 'EAGER_MAX_SCORES', EAGER if small else {})
    inputs = operands(lq=30, lk=20, dtype=dtype)
    upstream = upstream_of(inputs).to(dtype)
    with torch.autocast('cpu', dtype=dtype, enabled=autocast):
        got = run(mixture_attention, inputs, upstream, similarity=similarity)
    assert got[0].dtype == dtype
    assert all(g.dtype == dtype for g in got[1])
    assert_agrees(got, run_oracle(inputs, upstream, similarity=similarity),
                  tolerance)


@both_similarities
@low_precision
@pytest.mark.parametrize('small', [False, True])
def test_autocast_leaves_float32_alone(similarity, dtype, tolerance, small,
                                       monkeypatch):
    monkeypatch.setattr(paths, 'EAGER_MAX_SCORES', EAGER if small else {})
    inputs = operands(lq=30, lk=20)
    upstream = upstream_of(inputs)
    with torch.autocast('cpu', dtype=dtype):
        got = run(mixture_attention, inputs, upstream, similarity=similarity)
    assert got[0].dtype == torch.float32
    assert_agrees(got, run_oracle(inputs, upstream, similarity=similarity),
                  1e-5)


@pytest.mark.parametrize('position', range(4))
@pytest.mark.parametrize('other', [torch.float64, torch.bfloat16])
def test_result_has_the_dtype_of_value(position, other):
    inputs = operands()
    inputs[position] = inputs[position].to(other)
    upstream = upstream_of(inputs)
    got = run(mixture_attention, inputs, upstream)
    assert got[0].dtype == inputs[2].dtype
    assert [g.dtype for g in got[1]] == [t.dtype for t in inputs]
    tolerance = 2**-8 if other == torch.bfloat16 else 1e-5
    assert_agrees(got, run_oracle(inputs, upstream), tolerance)


@both_similarities
@pytest.mark.parametrize('wanted',
                         [*itertools.product([False, True], repeat=4)])
def test_some_inputs_require_a_gradient(similarity, wanted):
    inputs = operands()
    upstream = upstream_of(inputs)
    _, full = run(mixture_attention, inputs, upstream, similarity=similarity)
    out = mixture_attention(
        *(t.requires_grad_(w) for t, w in zip(inputs, wanted)),
        similarity=similarity)
    assert out.requires_grad == any(wanted)
    if any(wanted):
        out.backward(upstream)
    for tensor, gradient, want in zip(inputs, full, wanted):
        assert torch.equal(tensor.grad, gradient) if want else (
            tensor.grad is None)


@both_similarities
def test_each_image_gives_the_same_alone(similarity):
    inputs = operands(batch=3, lq=30, lk=20)
    upstream = upstream_of(inputs)
    out, grads = run(mixture_attention, inputs, upstream,
                     similarity=similarity)
    for b in range(3):
        alone = run(mixture_attention, [t[b:b + 1] for t in inputs],
                    upstream[b:b + 1], similarity=similarity)
        assert_agrees(alone, (out[b:b + 1], [g[b:b + 1] for g in grads]), 1e-6)


@both_similarities
def test_runs_repeat_bit_for_bit(similarity, score_budget):
    score_budget(2 * 2 * 20 * 7)
    inputs = operands(lq=30, lk=20)
    upstream = upstream_of(inputs)
    out, grads = run(mixture_attention, inputs, upstream,
                     similarity=similarity)
    again, grads_again = run(mixture_attention, inputs, upstream,
                             similarity=similarity)
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again))


class Attention(torch.nn.Module):
    """The function as a module, which the exporter asks for."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, query, key, value, mixture_weights):
        return mixture_attention(query, key, value, mixture_weights, **self.options)


@both_similarities
@pytest.mark.parametrize('scale', [None, 0.3])
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_traced_graph_gives_the_same_at_any_size(similarity, scale,
                                                 score_budget):
    # A traced loop would have as many chunks for ever as it had here.
    score_budget(2 * 2 * 7 * 4)
    module = Attention(similarity=similarity, scale=scale)
    traced = torch.jit.trace(module, operands())
    # A call back into Python could be neither counted nor saved.
    assert not any(
        n.kind() == 'prim::PythonOp' for n in traced.inlined_graph.nodes())
    for inputs in (operands(), operands(batch=3, lq=31, lk=5)):
        upstream = upstream_of(inputs)
        assert_agrees(
            run(traced, inputs, upstream), run(module, inputs, upstream), 1e-5)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_traced_graph_keeps_the_dtype_of_value():
    inputs = operands(dtype=torch.bfloat16)
    out = torch.jit.trace(Attention(), inputs)(*inputs)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, mixture_attention(*inputs)) <= 2**-8


@both_similarities
def test_exported_program_gives_the_same_at_any_size(similarity):
    module = Attention(similarity=similarity)
    lq, lk = torch.export.Dim('lq'), torch.export.Dim('lk')
    program = torch.export.export(
        module, tuple(operands()),
        dynamic_shapes=({2: lq}, {2: lk}, {1: lk}, None)).module()
    for inputs in (operands(), operands(lq=31, lk=5)):
        assert relative_error(program(*inputs), module(*inputs)) <= 1e-6


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'wrong, given_as',
    [(None, 'NoneType'), ([[1.0]], 'list'), (torch.ones(2, 2).int(), 'int32'),
     (torch.ones(2, 2, dtype=torch.cfloat), 'complex64')])
def test_type_errors(name, wrong, given_as):
    inputs = dict(zip(NAMES, operands()))
    inputs[name] = wrong
    with pytest.raises(
            TypeError, match=f'^{name} must be a floating .* got .*{given_as}'):
        mixture_attention(**inputs)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('change',
                         [lambda t: t.unsqueeze(0), lambda t: t[0]],
                         ids=['more', 'less'])
def test_rank_errors(name, change):
    inputs = dict(zip(NAMES, operands()))
    rank = inputs[name].dim()
    inputs[name] = change(inputs[name])
    with pytest.raises(
            ValueError, match=f'^{name} must have {rank} dimensions') as error:
        mixture_attention(**inputs)
    assert f'{name} {tuple(inputs[name].shape)}' in str(error.value)


@pytest.mark.parametrize(
    'name, shape, words',
    [
        ('key', (3, 2, 7, 3), 'agree in B, N and d'),
        ('key', (2, 4, 7, 3), 'agree in B, N and d'),
        ('key', (2, 2, 7, 5), 'agree in B, N and d'),
        ('value', (3, 7, 4), 'B and Lk of key'),
        ('value', (2, 8, 4), 'B and Lk of key'),
        # Sizes that would broadcast are no better.
        ('key', (1, 2, 7, 3), 'agree in B, N and d'),
        ('value', (1, 7, 4), 'B and Lk of key'),
        ('mixture_weights', (1, 2), 'B and N of query'),
        ('mixture_weights', (2, 1), 'B and N of query'),
    ])
def test_shape_errors(name, shape, words):
    inputs = dict(zip(NAMES, operands()))
    inputs[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=words) as error:
        mixture_attention(**inputs)
    for argument, tensor in inputs.items():
        assert f'{argument} {tuple(tensor.shape)}' in str(error.value)


@pytest.mark.parametrize('empty', ['parts', 'depth', 'lk'])
def test_what_must_not_be_empty(empty):
    inputs = operands(**{empty: 0})
    assert any(prod(t.shape) == 0 for t in inputs)
    with pytest.raises(ValueError, match='N, d and Lk must not be 0') as error:
        mixture_attention(*inputs)
    assert f'query {tuple(inputs[0].shape)}' in str(error.value)


@pytest.mark.parametrize('function',
                         [mixture_attention, reference.mixture_attention])
def test_unknown_similarity(function):
    with pytest.raises(ValueError, match="^similarity .*got 'cosine'"):
        function(*operands(), similarity='cosine')


def test_reference_by_hand():
    """The oracle itself, on numbers that can be followed by hand."""
    query = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    key = torch.tensor([[[[1.0, 1.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]]])
    dot = reference.mixture_scores(query, key, scale=1.0)
    assert dot.tolist() == [[[[1.0, 3.0]], [[4.0, 0.0]]]]
    distance = reference.mixture_scores(
        query, key, similarity='neg_euclid', scale=0.5)
    assert distance.tolist() == [[[[-0.5, -2.0]], [[0.0, -2.0]]]]
    default = reference.mixture_scores(query, key)
    assert torch.allclose(default, dot / 2**0.5)
    value = torch.tensor([[[1.0], [0.0]]])
    weights = torch.tensor([[0.25, 0.75]])
    out = reference.mixture_attention(query, key, value, weights, scale=1.0)
    first, second = (torch.tensor(x).sigmoid() for x in (-2.0, 4.0))
    assert torch.allclose(out.squeeze(), 0.25 * first + 0.75 * second)


@both_similarities
@pytest.mark.parametrize('path', paths.MIXTURE_PATHS)
@pytest.mark.parametrize('origin', ['argument', 'environment'])
def test_every_path_gives_the_same(similarity, path, origin, monkeypatch):
    inputs = operands(dtype=torch.float64)
    upstream = upstream_of(inputs)
    whole = run(reference.mixture_attention, inputs, upstream,
                similarity=similarity)
    taken = []
    for name in ('_fused', '_eager'):
        monkeypatch.setattr(
            attention, name, lambda *args, made=getattr(attention, name), name=
            name: taken.append(name) or made(*args))
    kwargs = {}
    if origin == 'argument':
        kwargs['path'] = path
        monkeypatch.setenv('FPT_ATTENTION', 'no such path')
    else:
        monkeypatch.setenv('FPT_ATTENTION', path)
    got = run(mixture_attention, inputs, upstream, similarity=similarity,
              **kwargs)
    assert_agrees(got, whole, 1e-10)
    assert taken == ([] if path == 'chunked' else [f'_{path}'])


@both_similarities
def test_fused_path_keeps_the_digits_of_bfloat16(similarity):
    inputs = operands(lq=40, lk=30, depth=16, dtype=torch.bfloat16)
    got = mixture_attention(*inputs, similarity=similarity, path='fused')
    want = reference.mixture_attention(
        *(t.double() for t in inputs), similarity=similarity)
    assert got.dtype == torch.bfloat16
    assert relative_error(got.double(), want) < 2e-2


@both_similarities
@pytest.mark.parametrize('pieces', [2, 4, 9])
def test_queries_in_pieces_give_the_same(similarity, pieces, monkeypatch):
    """As the fused path cuts them on a GPU, where keys are few."""
    inputs = operands(lq=9, dtype=torch.float64)
    upstream = upstream_of(inputs)
    want = run_oracle(inputs, upstream, similarity=similarity)
    monkeypatch.setattr(attention, '_num_pieces', lambda *args: pieces)
    got = run(mixture_attention, inputs, upstream, similarity=similarity,
              path='fused')
    assert_agrees(got, want, 1e-10)


@pytest.mark.parametrize('queries, keys, pieces', [
    (67_200, 1050, 8), (16_800, 1050, 8), (4200, 1050, 4), (1050, 1050, 1),
    (16_800, 16_800, 1), (5, 3, 1)])
def test_pieces_keep_a_gpu_busy(queries, keys, pieces):
    """Of two images in two parts."""
    query, key = (
        torch.empty(2, 2, n, 8, device='meta') for n in (queries, keys))
    assert attention._num_pieces(query, key) == pieces
    assert attention._num_pieces(torch.empty(2, 2, 9, 8), torch.empty(2, 2, 9, 8)) == 1


@both_similarities
@pytest.mark.parametrize('depth, channels', [(3, 4), (5, 3), (8, 8)])
def test_fused_path_keeps_no_scores(similarity, depth, channels, score_budget):
    inputs = operands(batch=1, lq=60, lk=50, depth=depth, channels=channels)
    upstream = upstream_of(inputs)
    score_budget(1000)
    with Recorder() as recorder:
        got = run(mixture_attention, inputs, upstream, similarity=similarity,
                  path='fused')
    assert recorder.largest < 2000 < 60 * 50
    assert_agrees(got, run_oracle(inputs, upstream, similarity=similarity), 1e-5)


@pytest.mark.parametrize('dtype, similarity, depth, channels, major, path', [
    (torch.bfloat16, 'dot', 64, 128, 9, 'fused'),
    (torch.bfloat16, 'neg_euclid', 32, 128, 8, 'fused'),
    (torch.bfloat16, 'dot', 64, 128, 7, 'chunked'),
    (torch.bfloat16, 'dot', 64, 264, 9, 'chunked'),
    (torch.bfloat16, 'neg_euclid', 256, 256, 9, 'chunked'),
    (torch.float16, 'dot', 64, 128, 9, 'fused'),
    (torch.float16, 'neg_euclid', 32, 128, 9, 'chunked'),
    (torch.float32, 'dot', 64, 128, 9, 'fused'),
    (torch.float32, 'dot', 64, 256, 9, 'chunked'),
    (torch.float64, 'dot', 64, 128, 9, 'chunked'),
])
def test_the_table_of_a_gpu(dtype, similarity, depth, channels, major, path,
                            monkeypatch):
    monkeypatch.setattr(paths, 'FUSED_MAX_CHANNELS', {
        ('meta', of): most for (_, of), most in paths.FUSED_MAX_CHANNELS.items()})
    monkeypatch.setattr(torch.cuda, 'get_device_properties',
                        lambda device: SimpleNamespace(major=major))
    query = torch.empty(1, 2, 99, depth, dtype=dtype, device='meta')
    value = torch.empty(1, 99, channels, dtype=dtype, device='meta')
    assert paths.choose_mixture_path(None, query, value, similarity) == path
    assert paths.choose_mixture_path('eager', query, value, similarity) == 'eager'
    for queries, keys in ((0, 99), (1, 99), (99, 1)):
        assert paths.choose_mixture_path(
            None, query[:, :, :queries], value[:, :keys],
            similarity) == 'chunked'


def path_of(query, value, similarity='dot'):
    return paths.choose_mixture_path(None, query, value, similarity)


def test_a_device_that_was_not_measured_takes_chunks(small_maps):
    query, value = torch.empty(1, 2, 9, 8), torch.empty(1, 9, 8)
    assert path_of(query.to('meta'), value.to('meta')) == 'chunked'
    assert path_of(query, value) == 'eager'


@both_similarities
@pytest.mark.parametrize('learns', [False, True])
def test_small_maps_are_eager_on_a_cpu(similarity, learns, small_maps):
    """As many scores as the table says, of all images and parts."""
    most = EAGER['cpu', similarity][learns]
    batch, parts, keys = 2, 4, 64
    queries = most // (batch * parts * keys)
    for more, path in ((0, 'eager'), (1, 'chunked')):
        query = torch.empty(batch, parts, queries + more, 8)
        value = torch.empty(batch, keys, 8, requires_grad=learns)
        assert path_of(query, value, similarity) == path
        with torch.no_grad():
            assert path_of(query, value, similarity) == (
                'chunked' if learns else path)


@both_similarities
def test_eager_scores_stay_well_within_the_budget(similarity, small_maps,
                                                  score_budget):
    inputs = operands(batch=1, parts=2, lq=60, lk=50)
    upstream = upstream_of(inputs)
    for budget_, held in ((3 * 6000, 6000), (3 * 6000 - 1, 2 * 3000)):
        score_budget(budget_)
        with Recorder() as recorder:
            run(mixture_attention, inputs, upstream, similarity=similarity)
        assert recorder.largest <= held
        assert (recorder.softmaxes == 0) == (budget_ == 3 * 6000)
    assert all(EAGER['cpu', similarity][learns] * paths.EAGER_COPIES <= 1 << 23
               for learns in (False, True))


@both_similarities
@pytest.mark.parametrize('parts', [1, 4])
@pytest.mark.parametrize('lq, lk', [(1, 1), (1, 7), (30, 1), (12, 20)])
def test_small_maps_agree_with_the_formula(similarity, parts, lq, lk, small_maps):
    inputs = operands(2, parts, lq, lk)
    upstream = upstream_of(inputs)
    want = run_oracle(inputs, upstream, similarity=similarity)
    assert_agrees(run(mixture_attention, inputs, upstream,
                      similarity=similarity), want, 1e-5)
    wide = [x.double() for x in inputs]
    assert_agrees(run(mixture_attention, wide, upstream,
                      similarity=similarity), want, 1e-11)


def test_gradients_under_autocast_take_chunks(small_maps):
    """A backward pass inside of autocast would round plain operators."""
    query = torch.empty(1, 2, 9, 8, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert path_of(query, torch.empty(1, 9, 8)) == 'chunked'
        with torch.no_grad():
            assert path_of(query, torch.empty(1, 9, 8)) == 'eager'


def test_unknown_path(monkeypatch):
    inputs = operands()
    with pytest.raises(ValueError, match="path must be one of .* got 'fast'"):
        mixture_attention(*inputs, path='fast')
    monkeypatch.setenv('FPT_ATTENTION', 'fast')
    with pytest.raises(ValueError, match="FPT_ATTENTION must be .* 'fast'"):
        mixture_attention(*inputs)


def test_fused_distance_refuses_float16():
    inputs = operands(dtype=torch.float16)
    with pytest.raises(ValueError, match='float16'):
        mixture_attention(*inputs, similarity='neg_euclid', path='fused')


@pytest.mark.parametrize('similarity', ['dot', 'neg_euclid'])
@pytest.mark.parametrize('spread, mean', [(1, 0), (5, 0), (5, 2), (1, 100)])
def test_fused_in_bfloat16_rounds_keys_once(similarity, spread, mean):
    """Peaked attention multiplies what is rounded; a mean hides the rest."""
    torch.manual_seed(0)
    query, key = (torch.randn(1, 2, 70, 32) * spread + mean for _ in range(2))
    value = torch.randn(1, 70, 32)
    operands = [x.bfloat16() for x in (query, key, value)]
    weights = torch.tensor([[0.4, 0.6]])
    exact = [x.double() for x in operands]
    want = reference.mixture_attention(*exact, weights.double(),
                                       similarity=similarity, scale=32**-0.5)
    got = mixture_attention(*operands, weights, similarity=similarity,
                            path='fused')
    error = (got.double() - want).norm() / want.norm()
    assert error <= (0.006 if mean < 4 * spread else 0.02), error


def test_paths_on_a_torch_without_is_compiling(monkeypatch):
    """torch 2.1 and 2.2."""
    monkeypatch.setattr(checks, 'torch', SimpleNamespace(
        compiler=SimpleNamespace(), _dynamo=torch._dynamo))
    assert checks.is_compiled() is False
