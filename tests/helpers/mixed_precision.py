"""Training passes in each precision, and their tolerances against float64."""

from __future__ import annotations

import copy

import torch

from helpers.oracles import gradient_floor, relative_error

# float16 scales the loss, as mmengine's AmpOptimWrapper does.
PRECISIONS = ('float32', 'bfloat16', 'float16')
# Tolerances of outputs and of gradients.
TOLERANCES = {
    'float32': (1e-5, 1e-5),
    'bfloat16': (3e-2, 1e-1),
    'float16': (5e-3, 2e-2),
}
SCALE = 2.**8


def double(module):
    """Return a copy in float64."""
    return copy.deepcopy(module).double()


class Trained:
    """Outputs and gradients of one training step of a module.

    Args:
        module: Called with the maps; returns one map or several.
        maps: Maps in float32 or float64.
        precision: One of PRECISIONS; None: the dtype of module and maps.
        formula: Called with module and maps instead of the module.
    """

    def __init__(self, module, maps, precision=None, formula=None):
        leaves = [x.detach().requires_grad_() for x in maps]
        device = leaves[0].device.type
        module.zero_grad()
        lower = precision in ('bfloat16', 'float16')
        with torch.autocast(
                device, getattr(torch, precision) if lower else None,
                enabled=lower):
            outs = module(*leaves) if formula is None else formula(
                module, *leaves)
        self.outs = [outs] if isinstance(outs, torch.Tensor) else list(outs)
        self.loss = sum(x.to(torch.promote_types(
            x.dtype, torch.float32)).square().mean() for x in self.outs)
        named = {**dict(module.named_parameters()),
                 **{f'map {i}': x for i, x in enumerate(leaves)}}
        scale = SCALE if precision == 'float16' else 1.
        torch.amp.GradScaler(device, init_scale=scale, enabled=scale != 1.).scale(
            self.loss).backward()
        self.missing = [name for name, x in named.items() if x.grad is None]
        self.gradients = {name: x.grad / scale for name, x in named.items()
                          if x.grad is not None}

    @classmethod
    def by_formula(cls, formula, module, maps):
        """Run a formula with the weights of a module in float64."""
        return cls(module, [x.double() for x in maps], formula=formula)


def agree(got, want, tolerances):
    """Assert that outputs and gradients agree, and that none is missing."""
    outputs, gradients = tolerances
    assert len(got.outs) == len(want.outs) and not got.missing
    for i, (g, w) in enumerate(zip(got.outs, want.outs)):
        assert relative_error(g, w) <= outputs, f'output {i}'
    floor = gradient_floor(want.gradients.values())
    for name, w in want.gradients.items():
        assert got.gradients[name].isfinite().all(), name
        assert relative_error(got.gradients[name], w, floor) <= gradients, name
