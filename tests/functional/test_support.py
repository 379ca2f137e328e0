"""Each cell of the table of torch's features in the docstring of functional."""

import pytest
import torch
from functorch.compile import make_boxed_func
from helpers.functions import Recorder, draw_shapes
from helpers.oracles import relative_error, run_with_gradients
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import grad as func_grad
from torch.func import vmap
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from fpt_plugin import functional
from fpt_plugin.functional import reference, tiles

# Shapes of the operands, options, and the size of what plain operators hold at once.
CASES = {
    'mixture_attention': (((1, 1, 60, 4), (1, 1, 50, 4), (1, 50, 4), (1, 1)),
                          {}, 60 * 50),
    'local_mixture_attention': (((1, 1, 8, 16, 12), (1, 1, 8, 16, 12),
                                 (1, 8, 16, 12), (1, 1)),
                                dict(window=3), 8 * 9 * 16 * 12),
    'position_lambda': (((1, 1, 8, 16, 12), (1, 1, 8, 16, 12), (8, 1, 3, 3)),
                        {}, 8 * 8 * 16 * 12),
    'content_lambda': (((1, 4, 1, 60), (1, 1, 4, 60)), {}, 4 * 4 * 60),
}


class Function(torch.nn.Module):

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *operands):
        return self.function(*operands)


def higher(function, operands):
    leaves = [x.clone().requires_grad_() for x in operands]
    first = torch.autograd.grad(function(*leaves).sum(), leaves[1:2],
                                create_graph=True)
    return torch.autograd.grad(first[0].square().sum(), leaves[:1])


def dual(function, operands):
    with forward_ad.dual_level():
        out = function(*(forward_ad.make_dual(x, x.cos()) for x in operands))
        return forward_ad.unpack_dual(out)


def transformed(function, operands):
    of_each = func_grad(lambda *x: function(*x).square().sum())
    return [vmap(of_each)(*(x[None] for x in operands))]


def compiled(function, operands):
    # torch compiles no graph under a mode, so sizes are read from the graphs.
    made = []

    def see(graph, _):
        made.extend(
            tree_leaves([x.meta.get('val') for x in graph.graph.nodes]))
        return make_boxed_func(graph.forward)

    with _disable_current_modes():
        got = run_with_gradients(
            torch.compile(function, fullgraph=True,
                          backend=aot_autograd(fw_compiler=see)), operands)
    assert made
    return got, max(x.numel() for x in made if isinstance(x, torch.Tensor))


USES = {
    'first': run_with_gradients,
    'compile': compiled,
    'torch.func': transformed,
    'forward': dual,
    'higher': higher,
    'export': lambda function, operands: [torch.export.export(
        Function(function), tuple(operands)).module()(*operands)],
}


def cells():
    """(function, use, what the table says)."""
    rows = [line.split() for line in functional.__doc__.splitlines()]
    rows = [row for row in rows if row and row[0] in ('function', *CASES)]
    (_, *uses), *rows = rows
    assert uses == list(USES) and {row[0] for row in rows} == set(CASES)
    assert set(CASES) < set(functional.__all__)
    return [(name, use, cell)
            for name, *row in rows for use, cell in zip(uses, row, strict=True)]


@pytest.mark.parametrize('name, use, cell', cells())
def test_table(name, use, cell, score_budget, monkeypatch):
    score_budget(1000)
    monkeypatch.setitem(tiles.MULTI_STRIP_BUDGET, 'cpu', 1000)
    torch._dynamo.reset()
    shapes, options, most = CASES[name]
    operands = draw_shapes(shapes)

    def function(*x):
        return getattr(functional, name)(*x, **options)

    def formula(*x):
        return getattr(reference, name)(*x, **options)

    with Recorder() as recorder:
        got = USES[use](function, operands)
    if use == 'compile':
        got, recorder.largest = got
    want = {
        'compile': run_with_gradients,
        'export': lambda function, operands: [function(*operands)]
    }.get(use, USES[use])(formula, operands)
    floor = 0.1 * max(x.norm().item() for x in want)
    for g, w in zip(got, want, strict=True):
        assert relative_error(g, w, floor) <= 1e-10
    assert cell == ('bounded' if recorder.largest < most else 'plain')
