import itertools

import pytest
import torch
from helpers.functions import draw_shapes
from helpers.oracles import all_agree
from helpers.oracles import run_with_gradients as run
from hypothesis import given, settings
from hypothesis import strategies as st

from fpt_plugin.functional import (
    content_lambda,
    lambdas,
    position_lambda,
    reference,
)
from fpt_plugin.functional.lambda_orders import ORDERS, crop_embedding, estimate_costs


def operands(batch=2, heads=2, depth=3, intra=1, channels=4, size=(7, 9),
             window=(5, 5), dtype=torch.float64, seed=0):
    """query, value and embedding."""
    return draw_shapes(((batch, heads, depth, *size),
                        (batch, intra, channels, *size),
                        (depth, intra, *window)), dtype, seed)


def pixel_by_pixel(query, value, embedding):
    """Compute the paper's sum by loops over heads, pixels and the window."""
    batch, heads, depth, height, width = query.shape
    intra, channels = value.shape[1:3]
    reach = [side // 2 for side in embedding.shape[2:]]
    out = query.new_zeros(batch, heads, channels, height, width)
    for y, x in itertools.product(range(height), range(width)):
        position = query.new_zeros(batch, depth, channels)
        for i, j in itertools.product(*map(range, embedding.shape[2:])):
            row, column = y + i - reach[0], x + j - reach[1]
            if 0 <= row < height and 0 <= column < width:
                for u in range(intra):
                    position += (embedding[:, u, i, j][:, None] *
                                 value[:, u, :, row, column][:, None])
        for h in range(heads):
            for v in range(channels):
                out[:, h, v, y, x] = (query[:, h, :, y, x] *
                                      position[:, :, v]).sum(-1)
    return out


@pytest.mark.parametrize('intra', [1, 2])
@pytest.mark.parametrize('window', [(3, 5), (5, 1)])
def test_the_references_are_the_papers_sum(intra, window):
    inputs = operands(size=(3, 4), intra=intra, window=window)
    want = pixel_by_pixel(*inputs)
    for formula in (reference.position_lambda, reference.position_lambda_conv3d,
                    lambda *x: reference.position_lambda_conv3d(
                        *x, channels_first=True)):
        torch.testing.assert_close(formula(*inputs), want)
    if intra == 1:
        torch.testing.assert_close(
            reference.position_lambda_depthwise(*inputs), want)


@pytest.mark.parametrize('path', ORDERS)
def test_at_the_sizes_of_a_detector(path):
    """C5 of an image of 800 x 1344 pixels, float32 against float64."""
    inputs = operands(1, 4, 16, 1, 128, (25, 42), (23, 23), torch.float32)
    want = run(reference.position_lambda, [x.double() for x in inputs])
    all_agree(run(position_lambda, inputs, path=path), want, 1e-5)


@pytest.mark.parametrize('path', [None, *ORDERS])
def test_a_window_larger_than_the_map(path):
    """Offsets that no pixel reaches are left out and have no gradient."""
    inputs = operands(size=(3, 2), window=(23, 23))
    *_, grad = got = run(position_lambda, inputs, path=path)
    all_agree(got, run(reference.position_lambda, inputs), 1e-11)
    inside = grad[:, :, 9:14, 10:13]
    assert inside.ne(0).all() and grad.ne(0).sum() == inside.numel()


def test_crop_embedding_is_a_view_of_the_reached_offsets():
    embedding = torch.rand(2, 1, 23, 5)
    assert crop_embedding(embedding, (4, 30)).shape == (2, 1, 7, 5)
    assert torch.equal(crop_embedding(embedding, (4, 30)), embedding[:, :, 8:15])
    assert crop_embedding(embedding, (12, 3)).data_ptr() == embedding.data_ptr()


@pytest.mark.parametrize('device_type, heads, channels, size, side, cheapest', [
    # C4 and C5 of the paper's networks, output stride 8
    ('cpu', 4, 64, (50, 84), 23, 'attention'),
    ('cpu', 4, 128, (25, 42), 23, 'attention'),
    ('cpu', 4, 64, (64, 128), 9, 'attention'),
    # many heads share few values
    ('cpu', 32, 8, (50, 84), 23, 'lambda'),
    # C2 of a network whose blocks are all lambda layers
    ('cpu', 4, 16, (56, 56), 23, 'lambda'),
    # as measured on a GPU
    ('cuda', 4, 64, (50, 84), 23, 'attention'),
    ('cuda', 16, 16, (50, 84), 23, 'lambda'),
    ('cuda', 32, 8, (50, 84), 23, 'lambda'),
])
def test_the_cheapest_order_is_taken(device_type, heads, channels, size, side,
                                     cheapest):
    shapes = ((1, heads, 16, *size), (1, 1, channels, *size), (16, 1, side, side))
    costs = estimate_costs(*shapes, device_type=device_type)
    assert min(costs, key=costs.get) == cheapest
    if device_type == 'cuda':  # other accelerators are treated alike
        operands = [torch.empty(x, device='meta') for x in shapes]
        assert lambdas.choose_order(None, *operands) == cheapest


def test_the_environment_variable_names_an_order(monkeypatch):
    inputs = operands()
    calls = []
    for name, order in ORDERS.items():
        monkeypatch.setattr(
            order, 'forward',
            classmethod(lambda cls, *x, _f=order.forward, _n=name:
                        (calls.append(_n), _f(*x))[1]))
    for name in ORDERS:
        monkeypatch.setenv('FPT_LAMBDA', name)
        position_lambda(*inputs)
    assert calls == list(ORDERS)
    position_lambda(*inputs, path='attention')  # the argument wins
    assert calls[-1] == 'attention'
    monkeypatch.setenv('FPT_LAMBDA', 'fastest')
    with pytest.raises(ValueError, match="FPT_LAMBDA must be .* 'fastest'"):
        position_lambda(*inputs)


@pytest.mark.parametrize('index, shape, words', [
    (0, (2, 3, 7, 9), 'query must have 5 dimensions'),
    (0, (2, 2, 3, 7, 8), 'must agree in B, H and W'),
    (1, (1, 1, 4, 7, 9), 'must agree in B, H and W'),
    (1, (2, 2, 4, 7, 9), 'with the k of query and the u of value'),
    (2, (4, 1, 5, 5), 'with the k of query and the u of value'),
    (2, (3, 1, 4, 5), 'must have odd sides'),
    (0, (2, 0, 3, 7, 9), 'must not be 0'),
])
def test_bad_shapes(index, shape, words):
    inputs = operands()
    inputs[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=words) as error:
        position_lambda(*inputs)
    assert str(tuple(shape)) in str(error.value)


def test_bad_types():
    query, value, embedding = operands()
    with pytest.raises(TypeError, match='embedding must be a floating point'):
        position_lambda(query, value, embedding.long())
    with pytest.raises(ValueError, match="path must be .* 'fused'"):
        position_lambda(query, value, embedding, path='fused')
    with pytest.raises(TypeError, match='key must be a floating point'):
        content_lambda(torch.zeros(1, 2, 1, 3).long(), torch.rand(1, 1, 2, 3))


@settings(max_examples=40)
@given(*[st.integers(1, 4)] * 4, st.integers(1, 30))
def test_content_lambda(batch, depth, intra, channels, length):
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(batch, depth, intra, length, generator=generator).double()
    value = torch.randn(
        batch, intra, channels, length, generator=generator).double()
    weights = key.exp() / key.exp().sum(-1, keepdim=True)
    want = (weights[:, :, None] * value.transpose(1, 2)[:, None]).sum((-1, -2))
    torch.testing.assert_close(content_lambda(key, value), want)
    torch.testing.assert_close(reference.content_lambda(key, value), want)
    got = content_lambda(key.bfloat16(), value.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('key, value, words', [
    ((2, 3, 5), (2, 1, 4, 5), 'key must have 4 dimensions'),
    ((2, 3, 1, 5), (2, 1, 4, 6), 'must agree in B, u and n'),
    ((2, 3, 1, 5), (2, 2, 4, 5), 'must agree in B, u and n'),
    ((2, 3, 1, 0), (2, 1, 4, 0), 'must not be 0'),
])
def test_content_lambda_shapes(key, value, words):
    with pytest.raises(ValueError, match=words) as error:
        content_lambda(torch.zeros(key), torch.zeros(value))
    assert str(key) in str(error.value)


@pytest.mark.parametrize('path', [None, *ORDERS])
@pytest.mark.parametrize('intra_depth', [1, 2])
@pytest.mark.parametrize('batch', [1, 2])
def test_compiled(path, intra_depth, batch):
    """Products of depth 1 are not matrix products and may see conjugate views."""
    torch._dynamo.reset()

    def function(*x):
        return 2 * position_lambda(*x, path=path) + 1

    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True)
              for shape in ((batch, 2, 3, 5, 4), (batch, intra_depth, 2, 5, 4),
                            (3, intra_depth, 3, 5))]
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    all_agree(run(compiled, inputs), run(function, inputs), 1e-12)
