"""FPT with one branch alone: the rows of the paper's ablation."""

from __future__ import annotations

from mmengine.registry import MODELS

from ..openmmlab.registry import register
from .fpt import FPT
from .presets import BRANCHES, PRESET, default_branch


@register(MODELS)
class SelfTransformerNeck(FPT):
    """FPT with the Self-Transformer alone (the paper's ablation, +ST).

    Takes the arguments of :class:`FPT` but for the other branches.
    """

    def __init__(self, in_channels: list[int] | int, out_channels: int,
                 *args, **kwargs) -> None:
        super().__init__(in_channels, out_channels, *args, **_only(
            kwargs, 'self_transformer'))


@register(MODELS)
class GroundingTransformerNeck(FPT):
    """FPT with the Grounding Transformer alone (the paper's ablation, +GT).

    Takes the arguments of :class:`FPT` but for the other branches.
    """

    def __init__(self, in_channels: list[int] | int, out_channels: int,
                 *args, **kwargs) -> None:
        super().__init__(in_channels, out_channels, *args, **_only(
            kwargs, 'grounding_transformer'))


@register(MODELS)
class RenderingTransformerNeck(FPT):
    """FPT with the Rendering Transformer alone (the paper's ablation, +RT).

    Takes the arguments of :class:`FPT` but for the other branches.
    """

    def __init__(self, in_channels: list[int] | int, out_channels: int,
                 *args, **kwargs) -> None:
        super().__init__(in_channels, out_channels, *args, **_only(
            kwargs, 'rendering_transformer'))


def _only(kwargs: dict, branch: str) -> dict:
    """Switch the other branches off; refuse a config for one of them.

    The branch is there in each preset, also where the preset leaves it out.
    """
    kwargs = dict(kwargs)
    if kwargs.get(branch, PRESET) == PRESET:
        kwargs[branch] = default_branch(branch)
    for name in BRANCHES:
        if name != branch:
            if kwargs.get(name) is not None:
                raise TypeError(f'a neck with {branch} alone takes no {name}, '
                                f'got {kwargs[name]!r}; use FPT')
            kwargs[name] = None
    return kwargs
