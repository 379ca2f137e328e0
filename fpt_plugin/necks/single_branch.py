"""FPT with a single branch: the rows of the paper's ablation."""

from __future__ import annotations

from mmengine.registry import MODELS

from ..openmmlab.registry import register
from .fpt import FPT
from .presets import BRANCHES, PRESET, default_branch


@register(MODELS)
class SelfTransformerNeck(FPT):
    """FPT with only the Self-Transformer (the paper's ablation, +ST).

    The arguments are those of :class:`FPT`, except the other branches.
    """

    def __init__(self, in_channels: list[int] | int, out_channels: int,
                 *args, **kwargs) -> None:
        super().__init__(in_channels, out_channels, *args,
                         **_single_branch(kwargs, 'self_transformer'))


@register(MODELS)
class GroundingTransformerNeck(FPT):
    """FPT with only the Grounding Transformer (the paper's ablation, +GT).

    The arguments are those of :class:`FPT`, except the other branches.
    """

    def __init__(self, in_channels: list[int] | int, out_channels: int,
                 *args, **kwargs) -> None:
        super().__init__(in_channels, out_channels, *args,
                         **_single_branch(kwargs, 'grounding_transformer'))


@register(MODELS)
class RenderingTransformerNeck(FPT):
    """FPT with only the Rendering Transformer (the paper's ablation, +RT).

    The arguments are those of :class:`FPT`, except the other branches.
    """

    def __init__(self, in_channels: list[int] | int, out_channels: int,
                 *args, **kwargs) -> None:
        super().__init__(in_channels, out_channels, *args,
                         **_single_branch(kwargs, 'rendering_transformer'))


def _single_branch(kwargs: dict, branch: str) -> dict:
    """Switch off the other branches; reject a config for one of them.

    Every preset has the branch here, even a preset that leaves it out in FPT.
    """
    kwargs = dict(kwargs)
    if kwargs.get(branch, PRESET) == PRESET:
        kwargs[branch] = default_branch(branch)
    for name in BRANCHES:
        if name != branch:
            if kwargs.get(name) is not None:
                raise TypeError(f'a neck with only {branch} takes no {name}, '
                                f'got {kwargs[name]!r}; use FPT')
            kwargs[name] = None
    return kwargs
