"""Presets of FPT: the branches of each level and their width.

``'full'`` was the default of 0.1.0. ``'default'`` and ``'light'`` are cheaper;
configs/studies measures the accuracy and cost of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..layers.checks import check_levels

BRANCHES = ('self_transformer', 'grounding_transformer',
            'rendering_transformer')
_CROSS_LEVEL = BRANCHES[1:]
# Default of arguments for which None means "none".
PRESET = 'preset'


@dataclass(frozen=True)
class Preset:
    """Default values of FPT's arguments.

    Attributes:
        divisor: Embed channels are E = C // divisor.
        min_embed_channels: Lower limit of E, unless C is smaller.
        branches: Names of the branches.
        finest_st_only: With four or more levels, the finest has only the
            Self-Transformer, and GT and RT do not read it.
        key_strides: Pooling of the keys; None: to the coarsest level's grid.
        fusion: Name of the fusion.
        pyramid: Type of the wrapped neck.
    """

    divisor: int
    min_embed_channels: int = 1
    branches: tuple[str, ...] = BRANCHES
    finest_st_only: bool = False
    key_strides: int | None = None
    fusion: str = 'residual'
    pyramid: str = 'FPN'

    def embed_channels(self, channels: int, parts: int) -> int:
        """Return E for C channels, a multiple of the mixture ``parts``."""
        embed = max(channels // self.divisor,
                    min(self.min_embed_channels, channels))
        return max(embed // parts, 1) * parts

    def first_levels(self, num_levels: int,
                     one_size: bool = False) -> dict[str, int]:
        """Return the first level of each branch.

        Args:
            num_levels: Number of transformed levels.
            one_size: Whether their maps have one size, so that none is finest.
        """
        skipped = int(self.finest_st_only and num_levels >= 4 and not one_size)
        return {name: skipped if name in _CROSS_LEVEL else 0
                for name in BRANCHES}

    def resolve(self, name: str, given: Any) -> Any:
        """Return the given config of a branch or the pyramid, or the default."""
        if given != PRESET:
            return given
        if name == 'pyramid':
            return dict(type=self.pyramid)
        if name not in self.branches:
            return None
        return default_branch(name)


def default_branch(name: str) -> dict[str, str]:
    """Return the config of a branch with default arguments."""
    return dict(type=''.join(word.title() for word in name.split('_')))


PRESETS = {
    'light':
    Preset(divisor=8, min_embed_channels=32, branches=('self_transformer', )),
    'default':
    Preset(divisor=4, min_embed_channels=32, finest_st_only=True),
    'full':
    Preset(divisor=2),
    'paper':
    Preset(
        divisor=1, key_strides=1, fusion='concat', pyramid='BottomUpPyramid'),
}


def find_preset(name: str | None) -> Preset:
    """Return the preset of this name; None is the default preset.

    Raises:
        ValueError: There is no preset of this name.
    """
    if name is None:
        name = 'default'
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(
            f'preset must be one of {tuple(PRESETS)} or None, got {name!r}')
    return PRESETS[name]


def resolve_first_levels(first_level: int | dict | None, num_levels: int,
                         preset: Preset,
                         one_size: bool = False) -> dict[str, int]:
    """Return the first level of each branch, counted from the finest.

    Args:
        first_level: An int for all branches, or a dict from branch to int,
            with 0 for branches that it does not name; None: the preset's.
        num_levels: Number of transformed levels.
        preset: Used if ``first_level`` is None.
        one_size: Whether all levels have one size.

    Raises:
        TypeError: A level is not an int.
        ValueError: A level is not one of the transformed ones, or a name is
            not a branch.
    """
    if first_level is None:
        return preset.first_levels(num_levels, one_size)
    if not isinstance(first_level, dict):
        first_level = dict.fromkeys(BRANCHES, first_level)
    unknown = sorted(map(str, set(first_level) - set(BRANCHES)))
    if unknown:
        raise ValueError('first_level must be an int or a dict of branches '
                         f'{BRANCHES}, got {unknown}')
    levels = {name: first_level.get(name, 0) for name in BRANCHES}
    for name, level in levels.items():
        if level != 0 or isinstance(level, bool):
            check_levels('first_level', level)
        if level >= num_levels:
            raise ValueError(
                f'first_level must be less than the {num_levels} transformed '
                f'levels, got {level} for {name}')
    return levels
