"""Derivatives, transforms and other modes of torch for each function."""

import pytest
import torch
from helpers.functions import FUNCTIONS, draw
from helpers.oracles import all_agree, run_with_gradients
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import grad as func_grad
from torch.func import hessian, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from fpt_plugin.functional import operators

every_function = pytest.mark.parametrize('name', FUNCTIONS)


def leaves_of(name, **kwargs):
    return [x.requires_grad_() for x in draw(name, **kwargs)]


# ----------------------------------------------------------------- derivatives


@every_function
def test_finite_differences(name, score_budget):
    """In several chunks or tiles."""
    score_budget(16)
    function, _ = FUNCTIONS[name]
    assert gradcheck(function, leaves_of(name))
    assert gradgradcheck(function, leaves_of(name), fast_mode=True)


def penalty(function, inputs, wanted, loss):
    """Compute a gradient penalty and its gradients."""
    first = grad(loss(function(*inputs)), [inputs[i] for i in wanted],
                 create_graph=True)
    total = sum(x.square().sum() for x in first)
    return [total, *grad(total, inputs, materialize_grads=True)]


LOSSES = {
    'linear': lambda out: (out * torch.linspace(
        -1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum(),
    'square': lambda out: out.square().mean(),
    'after a frozen tail': lambda out: torch.nn.functional.linear(
        out.flatten(1), torch.ones(2, out[0].numel(), dtype=out.dtype)
    ).sum(),
}


@every_function
@pytest.mark.parametrize('loss', LOSSES)
def test_gradient_penalties(name, loss):
    """The incoming gradient of a linear loss has no gradient."""
    function, formula = FUNCTIONS[name]
    inputs = leaves_of(name)
    for wanted in ([0], [1], range(len(inputs))):
        all_agree(penalty(function, inputs, wanted, LOSSES[loss]),
                  penalty(formula, inputs, wanted, LOSSES[loss]))


@every_function
def test_penalty_if_inputs_depend_on_each_other(name):
    """Gradients stop at each input."""
    function, formula = FUNCTIONS[name]

    def chained(f):

        def of_one(x):
            first, *others = draw(name)
            made = first * x
            return f(made, *(other * made.mean() for other in others))

        return of_one

    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    all_agree(penalty(chained(function), [x], [0], LOSSES['linear']),
              penalty(chained(formula), [x], [0], LOSSES['linear']))


@every_function
def test_gradients_of_several_outputs_at_once(name):
    function, formula = FUNCTIONS[name]

    def batched(f):
        inputs = leaves_of(name)
        out = f(*inputs)
        each = torch.stack([torch.ones_like(out), out.detach().cos()])
        found = grad(out, inputs, each, is_grads_batched=True)
        assert not any(x.requires_grad for x in found)
        first, *others = draw(name)
        return [*found, torch.autograd.functional.hessian(
            lambda x: f(x, *others).square().sum(), first, vectorize=True)]

    all_agree(batched(function), batched(formula))


@every_function
def test_penalty_of_a_forward_under_autocast(name):
    function, formula = FUNCTIONS[name]
    inputs = leaves_of(name, dtype=torch.float32)
    wide = [x.detach().double().requires_grad_() for x in inputs]

    def autocast(*x):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return function(*x)

    all_agree(penalty(autocast, inputs, [0, 1], LOSSES['square']),
              penalty(formula, wide, [0, 1], LOSSES['square']), 1e-4)


# ------------------------------------------------------------------ transforms


@every_function
def test_functional_transforms(name):
    function, formula = FUNCTIONS[name]
    inputs, tangents = draw(name), draw(name, seed=1)

    def transformed(f):
        def loss(*x):
            return f(*x).square().sum()

        each = tuple(range(len(inputs)))
        first = func_grad(loss, each)(*inputs)
        stacked = [torch.stack([x, 0.5 * x]) for x in inputs]
        return [
            *first,
            *vmap(func_grad(loss, each))(*stacked),
            *vmap(f, in_dims=(0, *[None] * (len(inputs) - 1)))(
                stacked[0], *inputs[1:]).unbind(),
            *jvp(f, tuple(inputs), tuple(tangents)),
            hessian(lambda x: loss(inputs[0], x, *inputs[2:]))(inputs[1]),
        ]

    all_agree(transformed(function), transformed(formula))


# ----------------------------------------------------------------- other modes


@every_function
def test_outputs_may_change_in_place(name):
    function, _ = FUNCTIONS[name]
    for seed in range(2):
        inputs = leaves_of(name, seed=seed)
        out = function(*inputs)
        want = [2 * x for x in grad(out.sum(), inputs)]
        out = function(*inputs)
        out.add_(1).mul_(2)
        all_agree(grad(out.sum(), inputs), want)


@every_function
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_tensors_without_data(name, dtype):
    function, _ = FUNCTIONS[name]
    inputs = draw(name, dtype=dtype)
    empty = [x.detach().to('meta').requires_grad_() for x in inputs]
    out, want = function(*empty), function(*inputs)
    assert out.is_meta
    assert out.stride() == want.stride()
    assert (out.shape, out.dtype) == (want.shape, want.dtype)
    out.sum().backward()
    assert all(x.grad.shape == x.shape for x in empty)


@pytest.mark.parametrize('name', [
    'mixture_attention dot chunked', 'mixture_attention neg_euclid chunked',
    'local_mixture_attention dot zero chunked', 'content_lambda',
    'position_lambda attention'])
def test_flops_are_counted(name):
    """Chunks compute scores twice, and windows more scores than are needed."""
    function, formula = FUNCTIONS[name]

    def flops(f):
        inputs = leaves_of(name, dtype=torch.float32)
        counts = []
        with FlopCounterMode(display=False) as counter:
            out = f(*inputs)
            counts.append(counter.get_total_flops())
            out.sum().backward()
        return *counts, counter.get_total_flops() - counts[0]

    (forward, backward), (plain, _) = flops(function), flops(formula)
    if name.startswith('mixture'):
        assert forward == plain
        parts, depth, channels = 2, 3, 2
        each = plain // (parts * depth + channels)
        # Scores again, and the gradients of both operands of scores and values.
        assert backward == each * (3 * parts * depth + 2 * channels)
    else:
        assert forward >= plain and backward >= plain


@every_function
def test_graphs_of_a_torch_without_custom_operators(name, monkeypatch):
    """In torch < 2.4 graphs contain the formulas."""
    monkeypatch.setattr(operators, '_HAS_CUSTOM_OPS', False)
    torch._dynamo.reset()
    function, formula = FUNCTIONS[name]
    compiled = torch.compile(lambda *x: function(*x), fullgraph=True,
                             backend='aot_eager')
    all_agree(run_with_gradients(compiled, draw(name)),
              run_with_gradients(formula, draw(name)))


@every_function
def test_transforms_of_a_graph(name):
    torch._dynamo.reset()
    function, formula = FUNCTIONS[name]

    def gradient(f):
        return vmap(func_grad(lambda *x: f(*x).square().sum()))

    inputs = [torch.stack([x, 0.5 * x]) for x in draw(name)]
    compiled = torch.compile(gradient(function), backend='aot_eager')
    all_agree([compiled(*inputs)], [gradient(formula)(*inputs)])
