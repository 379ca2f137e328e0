"""Mixture attention in chunks: numbers, memory, graphs and bad arguments."""

import pytest
import torch
from helpers.functions import Recorder, attention_operands
from helpers.oracles import all_agree, relative_error
from helpers.oracles import run_with_gradients as run

from fpt_plugin.functional import checks, mixture_attention, paths, reference

NAMES = ('query', 'key', 'value', 'mixture_weights')
both_similarities = pytest.mark.parametrize('similarity', checks.SIMILARITIES)
chunked_and_eager = pytest.mark.parametrize('path', ['chunked', 'eager'])


def run_oracle(inputs, **kwargs):
    return run(reference.mixture_attention, [t.double() for t in inputs], **kwargs)


@pytest.fixture(autouse=True)
def _chunks(monkeypatch):
    """Compute maps in chunks; small ones would take the eager path."""
    monkeypatch.setattr(paths, 'EAGER_MAX_SCORES', {})


@both_similarities
@pytest.mark.parametrize(
    'scores, chunks',
    [
        (1, 23),  # less than the scores of one query: still one query at a time
        (2 * 11, 23),
        (2 * 11 * 5, 5),  # 23 = 4 * 5 + 3
        (2 * 11 * 6 - 1, 5),
        (2 * 11 * 23, 1)
    ])
def test_result_does_not_depend_on_chunks(similarity, scores, chunks,
                                          score_budget):
    inputs = attention_operands(batch=2, parts=3, lq=23, lk=11)
    whole = run(mixture_attention, inputs, similarity=similarity)
    score_budget(scores)
    with Recorder() as recorder:
        chunked = run(mixture_attention, inputs, similarity=similarity)
    # The maps of each chunk are computed in the forward and in the backward pass, part
    # by part.
    assert recorder.softmaxes == 2 * 3 * chunks
    all_agree(chunked, whole, 1e-5)


@both_similarities
def test_scores_stay_within_the_budget(similarity, score_budget):
    inputs = attention_operands(batch=1, parts=2, lq=60, lk=50)
    most = 1000
    score_budget(most)
    with Recorder() as recorder:
        run(mixture_attention, inputs, similarity=similarity)
    assert max(t.numel() for t in inputs) <= most < 60 * 50
    assert recorder.largest <= most


@both_similarities
def test_no_query(similarity):
    out, *grads = run(mixture_attention, attention_operands(lq=0),
                      similarity=similarity)
    assert out.shape == (2, 0, 4) and not any(grad.any() for grad in grads)


@both_similarities
def test_the_value_of_a_single_key_is_the_output(similarity):
    inputs = attention_operands(lk=1)
    out, *grads = run(mixture_attention, inputs, similarity=similarity)
    value = inputs[2]
    assert relative_error(out, value.expand_as(out)) <= 1e-6
    assert not grads[0].any() and not grads[1].any()


@both_similarities
@chunked_and_eager
def test_a_common_offset_costs_no_digits(similarity, path):
    """Squared norms of 1e6 would leave one digit of a difference of 1."""
    inputs = attention_operands()
    query, key = inputs[:2]
    key += 1000
    if similarity == 'neg_euclid':
        query += 1000
    # For the dot product the query's gradient is a small difference of large
    # sums in the formula as well; float64 has digits to spare.
    all_agree(run(mixture_attention, inputs, similarity=similarity, path=path),
              run_oracle(inputs, similarity=similarity), 1e-5)


@both_similarities
@chunked_and_eager
def test_large_scores_are_one_hot_and_finite(similarity, path):
    inputs = attention_operands()
    inputs[0], inputs[1] = inputs[0] * 1e3, inputs[1] * 1e3
    out, *grads = run(mixture_attention, inputs, similarity=similarity, path=path)
    assert all(g.isfinite().all() for g in grads)
    want, *_ = run_oracle(inputs, similarity=similarity)
    assert relative_error(out, want) <= 1e-5


class Attention(torch.nn.Module):
    """The function as a module, which torch.export needs."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, *operands):
        return mixture_attention(*operands, **self.options)


@both_similarities
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5),
                                              (torch.bfloat16, 2**-8)])
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_traced_graph_gives_the_same_at_any_size(similarity, dtype, tolerance,
                                                 score_budget):
    # A traced loop would keep its number of chunks.
    score_budget(2 * 2 * 7 * 4)
    module = Attention(similarity=similarity)
    traced = torch.jit.trace(module, attention_operands(dtype=dtype))
    # A call of Python code could be neither counted nor saved.
    assert not any(
        n.kind() == 'prim::PythonOp' for n in traced.inlined_graph.nodes())
    for sizes in ({}, dict(batch=3, lq=31, lk=5)):
        inputs = attention_operands(**sizes, dtype=dtype)
        got = run(traced, inputs)
        assert got[0].dtype == dtype
        all_agree(got, run(module, inputs), tolerance)


@both_similarities
def test_exported_program_gives_the_same_at_any_size(similarity):
    module = Attention(similarity=similarity)
    lq, lk = torch.export.Dim('lq'), torch.export.Dim('lk')
    program = torch.export.export(
        module, tuple(attention_operands()),
        dynamic_shapes=(({2: lq}, {2: lk}, {1: lk}, None), )).module()
    for inputs in (attention_operands(), attention_operands(lq=31, lk=5)):
        assert relative_error(program(*inputs), module(*inputs)) <= 1e-6


@pytest.mark.parametrize('name', NAMES)
def test_type_errors(name):
    for wrong, given_as in ((None, 'NoneType'), ([[1.0]], 'list'),
                            (torch.ones(2, 2).int(), 'int32'),
                            (torch.ones(2, 2, dtype=torch.cfloat), 'complex64')):
        inputs = dict(zip(NAMES, attention_operands()))
        inputs[name] = wrong
        with pytest.raises(
                TypeError, match=f'^{name} must be a floating .* got .*{given_as}'):
            mixture_attention(**inputs)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('change',
                         [lambda t: t.unsqueeze(0), lambda t: t[0]],
                         ids=['more', 'less'])
def test_rank_errors(name, change):
    inputs = dict(zip(NAMES, attention_operands()))
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
        # Sizes that could be broadcast are errors, too.
        ('key', (1, 2, 7, 3), 'agree in B, N and d'),
        ('value', (1, 7, 4), 'B and Lk of key'),
        ('mixture_weights', (1, 2), 'B and N of query'),
        ('mixture_weights', (2, 1), 'B and N of query'),
    ])
def test_shape_errors(name, shape, words):
    inputs = dict(zip(NAMES, attention_operands()))
    inputs[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=words) as error:
        mixture_attention(**inputs)
    for argument, tensor in inputs.items():
        assert f'{argument} {tuple(tensor.shape)}' in str(error.value)


@pytest.mark.parametrize('empty', ['parts', 'depth', 'lk'])
def test_empty_dimensions(empty):
    inputs = attention_operands(**{empty: 0})
    with pytest.raises(ValueError, match='N, d and Lk must not be 0') as error:
        mixture_attention(*inputs)
    assert f'query {tuple(inputs[0].shape)}' in str(error.value)


@pytest.mark.parametrize('function',
                         [mixture_attention, reference.mixture_attention])
def test_unknown_similarity(function):
    with pytest.raises(ValueError, match="^similarity .*got 'cosine'"):
        function(*attention_operands(), similarity='cosine')


def test_reference_by_hand():
    """The formula itself, with numbers that can be followed by hand."""
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
