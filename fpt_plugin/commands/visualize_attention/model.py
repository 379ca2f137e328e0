"""A trained model up to its FPT: what the branches get."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...necks import FPT
from ...openmmlab.models import unwrapped


def outermost_fpts(model: nn.Module) -> list[FPT]:
    """Every FPT that is not the pyramid of another one, in their order."""
    if isinstance(model, FPT):
        return [model]
    return [fpt for child in model.children() for fpt in outermost_fpts(child)]


class _Reached(Exception):
    """Ends a pass where its last FPT begins."""


def branch_inputs(
        model: nn.Module,
        inputs: Tensor) -> list[tuple[int, int, nn.Module, tuple, dict]]:
    """What the branches of a model's FPT are called with.

    Where a neck has several FPT, one after another, it is the last one's.

    Args:
        model: A detector or segmentor.
        inputs: (B, C, H, W), its network's input.

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

    def note(fpt: FPT, args: tuple, kwargs: dict) -> None:
        calls.append((fpt, args[0] if args else kwargs['inputs']))
        if fpt is fpts[-1]:
            raise _Reached

    handles = [
        fpt.register_forward_pre_hook(note, with_kwargs=True) for fpt in fpts
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
