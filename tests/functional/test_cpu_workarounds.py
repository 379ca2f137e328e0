"""The work-arounds, and plain torch with the faults that they avoid.

A test of a fault is expected to fail. If it passes, this torch does not have the fault
on this processor. The work-around is no longer needed when that is so for every
supported version. Faults of torch's own code are strict; those of a library that has
kernels for each processor are not.
"""

import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.functions import draw_shapes

from fpt_plugin.functional import cpu_workarounds
from fpt_plugin.functional.cpu_workarounds import (
    channels_last,
    guard_narrow_maps,
    matmul_transposed,
    narrow_conv2d,
    usual_strides,
)


def fault(workaround, strict):
    """Plain torch is expected to fail."""
    return pytest.mark.xfail(
        reason=f'cpu_workarounds.{workaround.__name__} is needed', strict=strict)


def matrices(dtype=torch.float32, batch=2, rows=7, inner=5, columns=9):
    return draw_shapes(((batch, rows, inner), (batch, columns, inner),
                        (batch, columns)), dtype)


LAYOUTS = {
    'contiguous': lambda x: x,
    'transposed': lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    'strided': lambda x: x.repeat_interleave(3, 2)[..., ::3],
    'cut': lambda x: torch.cat([x, x], 2)[..., :x.shape[2]],
}


@pytest.mark.parametrize('left, right', itertools.product(LAYOUTS, LAYOUTS))
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('onednn', [True, False])
def test_matmul_transposed(left, right, batch, dtype, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(cpu_workarounds, '_ONEDNN_LINEAR', None)
    a, b, bias = matrices(dtype, batch)
    for given in (None, bias):
        want = a.double() @ b.double().transpose(1, 2)
        if given is not None:
            want = want + bias.double().unsqueeze(1)
        got = matmul_transposed(LAYOUTS[left](a), LAYOUTS[right](b), given)
        assert got.is_contiguous() and got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('empty', ['batch', 'rows'])
def test_empty_matrices(empty):
    a, b, bias = matrices(**{empty: 0})
    assert matmul_transposed(a, b, bias).shape == (*a.shape[:2], b.shape[1])


def test_torchs_switch_turns_onednn_off(monkeypatch):
    if cpu_workarounds._ONEDNN_LINEAR is None:
        pytest.skip('torch was built without oneDNN')
    calls = []
    monkeypatch.setattr(cpu_workarounds, '_ONEDNN_LINEAR',
                        lambda *args: calls.append(args))
    with torch.backends.mkldnn.flags(enabled=False):
        matmul_transposed(*matrices())
    assert not calls


def narrow_map_is_right(conv2d, stride, width, height):
    """Check output and gradients; unwritten memory is filled with NaN."""
    torch.manual_seed(0)
    leaves = [torch.randn(2, 16, height, width), torch.randn(16, 16, 3, 3) / 12,
              torch.randn(16)]
    upstream = torch.randn(2, 16, -(-height // stride), 1)

    def results(dtype, conv2d):
        given = [x.to(dtype).requires_grad_() for x in leaves]
        out = conv2d(*given, stride, 1)
        grads = torch.autograd.grad(out, given, upstream.to(dtype))
        return [x.double() for x in (out.detach(), *grads)]

    wanted = results(torch.float64, F.conv2d)
    for _ in range(10):
        memory = [torch.full((1 << k, ), float('nan')) for k in range(6, 20)]
        del memory
        if not all((got - want).norm() <= 0.1 * want.norm()
                   for got, want in zip(results(torch.bfloat16, conv2d), wanted)):
            return False
    return True


def by_a_guarded_module(x, weight, bias, stride, padding):
    conv = torch.nn.Conv2d(16, 16, 3, stride, padding).to(x.dtype)
    module = torch.nn.Sequential(conv)
    guard_narrow_maps(module)
    return torch.func.functional_call(
        module, {'0.weight': weight, '0.bias': bias}, (x, ))


@pytest.mark.parametrize('conv2d', [
    narrow_conv2d, by_a_guarded_module,
    pytest.param(F.conv2d, marks=fault(narrow_conv2d, strict=False))])
def test_narrow_maps_are_right(conv2d):
    for sizes in ((4, 1, 9), (2, 1, 9), (2, 2, 25), (4, 3, 40)):
        assert narrow_map_is_right(conv2d, *sizes)


class Halved(torch.nn.Conv2d):
    """More than a convolution, as weight standardisation is."""

    def forward(self, input):
        return super().forward(input) / 2


@pytest.mark.parametrize('cls', [torch.nn.Conv2d, Halved])
@pytest.mark.parametrize('by_name', [False, True])
def test_guarded_module_computes_the_same(cls, by_name):
    conv = cls(4, 4, 3, 2, 1)
    x = torch.randn(1, 4, 9, 1)
    want = conv(x)
    guard_narrow_maps(conv)
    with torch.autocast('cpu', torch.bfloat16):
        got = conv(input=x) if by_name else conv(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


TALL_KERNELS = """
import torch
import torch.nn.functional as F
for rows in (10, 12, 14, 16):
    for size in (7, 15, 31):
        x = torch.randn(1, 256, rows, 13)
        for shape in ((size, 1), (1, size)):
            x = F.conv2d(x, torch.randn(256, 256, *shape, requires_grad=True),
                         padding=(shape[0] // 2, shape[1] // 2))
        x.sum().backward()
print('whole')
"""


@pytest.mark.slow
@fault(channels_last, strict=False)
def test_tall_kernels_stay_in_their_memory():
    """Of contiguous maps, in a process that may crash."""
    run = subprocess.run([sys.executable, '-c', TALL_KERNELS],
                         capture_output=True, text=True)
    assert run.stdout == 'whole\n'


def image_of_unusual_strides():
    x = torch.randn(1, 8, 5, 6)
    unusual = x.new_empty(0).set_(
        x.clone().untyped_storage(), 0, x.shape, (1, 1, 48, 8))
    return unusual.copy_(x)


def norm_has_its_gradient(x):
    """Compare the gradient of a batch norm with that of a contiguous map."""
    norm = torch.nn.BatchNorm2d(8)
    upstream = torch.randn(1, 8, 5, 6)

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(norm(x), x, upstream)[0]

    contiguous = x.clone(memory_format=torch.contiguous_format)
    return torch.allclose(gradient(x), gradient(contiguous), atol=1e-5)


def test_norm_of_usual_strides_has_its_gradient():
    x = image_of_unusual_strides()
    last = torch.empty(1, 3, 5, 6).to(memory_format=torch.channels_last)
    for like in (last, last.contiguous()):
        out = usual_strides(x, like)
        assert torch.equal(out, x) and norm_has_its_gradient(out)
    assert usual_strides(x, last).stride() == (240, 1, 48, 8)


@fault(usual_strides, strict=True)
def test_norm_of_unusual_strides_has_its_gradient():
    assert norm_has_its_gradient(image_of_unusual_strides())
