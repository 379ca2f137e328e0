"""A trained model up to its FPT: its weights, and what the branches get."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from ...io.checkpoints import read_state_dict
from ...necks import FPT
from ...openmmlab.models import unwrapped
from ..convert_weights.command import summarised


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint's backbone and neck; heads do not matter here.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no checkpoint, or one of another model.
    """
    state_dict = read_state_dict(path).state_dict
    for prefix, part in _attended_parts(model):
        given = {
            key[len(prefix):]: value
            for key, value in state_dict.items() if key.startswith(prefix)
        }
        name = prefix[:-1]
        if not given:
            kinds = sorted({key.split('.')[0] for key in state_dict})
            raise ValueError(f'{path} is of another model: it has no {name}, '
                             f'only {", ".join(kinds[:8])}')
        shapes = {key: value.shape for key, value in part.state_dict().items()}
        wrong = [
            key for key, value in given.items()
            if key in shapes and value.shape != shapes[key]
        ]
        fitting = {k: value for k, value in given.items() if k not in wrong}
        try:
            result = part.load_state_dict(fitting, strict=False)
        except RuntimeError as error:  # shapes, under the names of a plain neck
            raise ValueError(f'{path} is of another model: {error}') from error
        missing = [
            key for key in result.missing_keys if key not in wrong
            and not key.endswith('num_batches_tracked')
        ]
        if missing:
            raise ValueError(
                f'{path} is of another model: its {name} lacks {len(missing)} '
                f'tensors of the config, {_some(missing, shapes)}')
        if result.unexpected_keys:
            raise ValueError(
                f'{path} is of another model: its {name} has '
                f'{len(result.unexpected_keys)} tensors without a place in the '
                f'config, {_some(result.unexpected_keys, given)}')
        if wrong:
            raise ValueError(
                f'{path} is of another model: {len(wrong)} tensors of its {name} '
                f'have another shape, {wrong[0]} {tuple(given[wrong[0]].shape)} '
                f'and not {tuple(shapes[wrong[0]])}')


def _some(keys: Collection[str], among: Collection[str], limit: int = 4) -> str:
    found = summarised(keys, among)
    return ', '.join(found[:limit]) + (', ...' if len(found) > limit else '')


def _attended_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Prefix and module of backbones, necks and FPT, none inside another."""
    parts: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        wanted = name.rpartition('.')[2] in ('backbone', 'neck') or isinstance(
            module, FPT)
        if wanted and not any(name.startswith(prefix) for prefix, _ in parts):
            parts.append((f'{name}.', module))
    return parts


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
