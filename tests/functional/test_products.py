import pytest
import torch

from fpt_plugin.functional import products
from fpt_plugin.functional.products import product


def matrices(dtype=torch.float32, batch=2, rows=7, inner=5, columns=9):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(
            shape, generator=generator, dtype=torch.float64).to(dtype)

    return (randn(batch, rows, inner), randn(batch, columns, inner),
            randn(batch, columns))


LAYOUTS = {
    'contiguous': lambda x: x,
    'transposed': lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    'strided': lambda x: x.repeat_interleave(3, 2)[..., ::3],
    'cut': lambda x: torch.cat([x, x], 2)[..., :x.shape[2]],
}


@pytest.mark.parametrize('left', LAYOUTS)
@pytest.mark.parametrize('right', LAYOUTS)
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('onednn', [True, False])
def test_product(left, right, batch, with_bias, dtype, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(products, '_ONEDNN', None)
    a, b, bias = matrices(dtype, batch)
    want = a.double() @ b.double().transpose(1, 2)
    if with_bias:
        want = want + bias.double().unsqueeze(1)
    got = product(LAYOUTS[left](a), LAYOUTS[right](b),
                  bias if with_bias else None)
    assert got.is_contiguous() and got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('empty', ['batch', 'rows'])
def test_nothing_to_multiply(empty):
    a, b, bias = matrices(**{empty: 0})
    assert product(a, b, bias).shape == (*a.shape[:2], b.shape[1])


def test_onednn_can_be_switched_off(monkeypatch):
    """By torch's own switch."""
    if products._ONEDNN is None:
        pytest.skip('torch was built without oneDNN')
    calls = []
    monkeypatch.setattr(products, '_ONEDNN', lambda *args: calls.append(args))
    with torch.backends.mkldnn.flags(enabled=False):
        product(*matrices())
    assert not calls
