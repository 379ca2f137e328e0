"""The inputs that the branches of a model's FPT receive."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...necks import FPT
from ...openmmlab.models import unwrapped


def outermost_fpts(model: nn.Module) -> list[FPT]:
    """List every FPT that is not inside another FPT, in order."""
    if isinstance(model, FPT):
        return [model]
    return [fpt for child in model.children() for fpt in outermost_fpts(child)]


class _Reached(Exception):
    """Stops a forward pass at its last FPT."""


def branch_inputs(
        model: nn.Module,
        inputs: Tensor) -> list[tuple[int, int, nn.Module, tuple, dict]]:
    """Record the inputs of the branches of a model's last FPT.

    Args:
        model: A detector or segmentor.
        inputs: (B, C, H, W), the network's input.

    Returns:
        See :meth:`fpt_plugin.FPT.branch_inputs`.

    Raises:
        ValueError: The model has no FPT, or does not use it.
    """
    fpts = outermost_fpts(model)
    if not fpts:
        neck = getattr(unwrapped(model), 'neck', None)
        given = 'no neck' if neck is None else f'the neck {type(neck).__name__}'
        raise ValueError('the model must have a neck of FPT, got '
                         f'{type(model).__name__} with {given}')
    calls = []

    def record(fpt: FPT, args: tuple, kwargs: dict) -> None:
        calls.append((fpt, args[0] if args else kwargs['inputs']))
        if fpt is fpts[-1]:
            raise _Reached

    handles = [
        fpt.register_forward_pre_hook(record, with_kwargs=True) for fpt in fpts
    ]
    network = model if hasattr(model, 'extract_feat') else unwrapped(model)
    model.eval()
    try:
        with torch.no_grad():
            network.extract_feat(inputs)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise ValueError(f'the FPT of {type(model).__name__} is not used when it '
                         'extracts the features of an image')
    fpt, maps = calls[-1]
    with torch.no_grad():
        return fpt.branch_inputs(maps)
