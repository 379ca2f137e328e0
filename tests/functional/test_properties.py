"""Properties that all functions have on all paths."""

import itertools

import pytest
import torch
from helpers.functions import FUNCTIONS, draw
from helpers.fuzz_cases import LAYOUTS
from helpers.oracles import all_agree
from helpers.oracles import run_with_gradients as run

every_function = pytest.mark.parametrize('name', FUNCTIONS)
half_precision = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
# The paths that save memory.
BOUNDED = [name for name in FUNCTIONS
           if name.split()[-1] in ('chunked', 'attention', 'lambda')]


@pytest.fixture(autouse=True)
def _small_budget(score_budget):
    """All operands are computed in several chunks or tiles."""
    score_budget(16)


def each_image(name, change):
    """Change the operands that have a batch: all but the lambdas' embedding."""
    count = 2 if name.startswith('position') else 4
    operands = draw(name)
    return [*map(change, operands[:count]), *operands[count:]]


@every_function
def test_images_do_not_mix(name):
    function, _ = FUNCTIONS[name]
    images = [draw(name), draw(name, seed=1)]
    both = [torch.cat(x) for x in zip(*images)]
    if name.startswith('position'):  # images share the embedding
        both[2] = images[1][2] = images[0][2]

    def output_and_gradients(operands):
        leaves = [x.clone().requires_grad_() for x in operands]
        out = function(*leaves)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    for x, *parts in zip(*map(output_and_gradients, (both, *images))):
        want = torch.cat(parts) if len(x) == 2 * len(parts[0]) else sum(parts)
        torch.testing.assert_close(x, want)


@every_function
def test_runs_repeat_bit_for_bit_and_change_no_operand(name):
    function, _ = FUNCTIONS[name]
    operands = draw(name, dtype=torch.float32)
    for first, again in zip(run(function, operands), run(function, operands)):
        assert torch.equal(first, again)
    for x, before in zip(operands, draw(name, dtype=torch.float32)):
        assert torch.equal(x, before)


@pytest.mark.parametrize('name', BOUNDED)
def test_only_operands_are_saved(name):
    operands = [x.requires_grad_() for x in draw(name)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.append(x) or x, lambda x: x):
        out = FUNCTIONS[name][0](*operands)
    assert out.requires_grad
    assert {x.untyped_storage().data_ptr() for x in saved} == {
        x.untyped_storage().data_ptr() for x in operands}
    assert sum(x.numel() for x in saved) <= sum(x.numel() for x in operands)


@every_function
@pytest.mark.parametrize('layout', [*LAYOUTS, 'expanded'])
def test_any_memory_layout(name, layout):
    function, formula = FUNCTIONS[name]
    if layout == 'expanded':
        operands = each_image(name, lambda x: x[:1].expand(3, *x.shape[1:]))
    else:
        operands = list(map(LAYOUTS[layout], draw(name)))
    all_agree(run(function, operands), run(formula, operands), 1e-10)


@every_function
def test_no_image(name):
    operands = each_image(name, lambda x: x[:0])
    out, *grads = run(FUNCTIONS[name][0], operands)
    assert len(out) == 0
    for x, grad in zip(operands, grads):
        assert grad.shape == x.shape and not grad.any()


@pytest.mark.parametrize('name', [name for name in FUNCTIONS if 'fused' not in name])
@half_precision
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_rounds_only_the_results(name, dtype, autocast):
    function, formula = FUNCTIONS[name]
    operands = draw(name, dtype=dtype)
    with torch.autocast('cpu', dtype=dtype, enabled=autocast):
        got = run(function, operands)
    assert got[0].dtype == (
        torch.float32 if name == 'content_lambda' else dtype)
    assert all(x.dtype == dtype for x in got[1:])
    all_agree(got, run(formula, [x.double() for x in operands]),
              torch.finfo(dtype).eps)


@every_function
@half_precision
def test_autocast_does_not_change_float32(name, dtype):
    function, formula = FUNCTIONS[name]
    operands = draw(name, dtype=torch.float32)

    def forward(*x):
        with torch.autocast('cpu', dtype=dtype):
            return function(*x)

    want = run(formula, [x.double() for x in operands])
    all_agree(run(forward, operands), want, 1e-5)
    if name in BOUNDED:  # the gradients of plain operators are rounded
        with torch.autocast('cpu', dtype=dtype):
            got = run(function, operands)
        assert got[0].dtype == torch.float32
        all_agree(got, want, 1e-5)


@every_function
def test_some_operands_need_no_gradient(name):
    function, _ = FUNCTIONS[name]
    operands = draw(name)
    full = run(function, operands)[1:]
    for needed in itertools.product([False, True], repeat=len(operands)):
        leaves = [x.clone().requires_grad_(need)
                  for x, need in zip(operands, needed)]
        out = function(*leaves)
        assert out.requires_grad == any(needed)
        if any(needed):
            generator = torch.Generator().manual_seed(1)
            out.backward(torch.randn(
                out.shape, generator=generator, dtype=torch.float64))
        for x, gradient, need in zip(leaves, full, needed):
            if need:
                torch.testing.assert_close(x.grad, gradient)
            else:
                assert x.grad is None
