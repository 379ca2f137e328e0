"""Training passes in each precision, and how far they may be from float64."""

from __future__ import annotations

import copy

import torch

from helpers.oracles import relative_error

# float16 with a scaled loss, as mmengine's AmpOptimWrapper trains.
PRECISIONS = ('float32', 'bfloat16', 'float16')
# Of outputs, and of gradients.
TOLERANCES = {
    'float32': (1e-5, 1e-5),
    'bfloat16': (3e-2, 1e-1),
    'float16': (5e-3, 2e-2),
}
SCALE = 2.**8


def double(module):
    """A copy in float64."""
    return copy.deepcopy(module).double()


class Trained:
    """Outputs and gradients of one pass of a module.

    Args:
        module: Called with the maps, returns a map or several.
        maps: Float32 or float64.
        precision: One of PRECISIONS; None: the dtype of module and maps.
        formula: Called with module and maps in place of the module.
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
        self.loss = sum(self._wide(x).square().mean() for x in self.outs)
        named = {**dict(module.named_parameters()),
                 **{f'map {i}': x for i, x in enumerate(leaves)}}
        scale = 1.
        if precision == 'float16':
            scaler = torch.amp.GradScaler(device, init_scale=SCALE)
            scaler.scale(self.loss).backward()
            scale = SCALE
        else:
            self.loss.backward()
        self.missing = [name for name, x in named.items() if x.grad is None]
        self.gradients = {name: x.grad / scale for name, x in named.items()
                          if x.grad is not None}

    @classmethod
    def by_formula(cls, formula, module, maps):
        """The same of a formula, with a module in float64."""
        return cls(module, [x.double() for x in maps], formula=formula)

    @staticmethod
    def _wide(x):
        return x.to(torch.promote_types(x.dtype, torch.float32))


def agree(got, want, tolerances):
    """Assert it of outputs and gradients, all of them there and finite.

    A small gradient is measured against a tenth of the largest.
    """
    outputs, gradients = tolerances
    assert len(got.outs) == len(want.outs) and not got.missing
    for i, (g, w) in enumerate(zip(got.outs, want.outs)):
        error = relative_error(g, w)
        assert error <= outputs, f'output {i}'
    floor = 0.1 * max(g.norm().item() for g in want.gradients.values())
    for name, w in want.gradients.items():
        assert got.gradients[name].isfinite().all(), name
        error = relative_error(got.gradients[name], w, floor)
        assert error <= gradients, name
