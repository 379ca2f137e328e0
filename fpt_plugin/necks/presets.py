"""Presets of FPT: which branches a level gets, and how wide they are.

``'full'`` is what 0.1.0 called the default. ``'default'`` and ``'light'`` are
cheaper; configs/studies measures what each of them gains and costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..layers.checks import check_levels

BRANCHES = ('self_transformer', 'grounding_transformer',
            'rendering_transformer')
_CROSS = BRANCHES[1:]
# Means "as the preset has it" where None means "none".
PRESET = 'preset'


@dataclass(frozen=True)
class Preset:
    """What FPT's arguments are where a config does not set them.

    Attributes:
        divisor: Embed channels are E = C // divisor,
        least: but at least this, or C where C is less.
        branches: The branches it has.
        spare_finest: Of four or more levels, the finest one gets the
            Self-Transformer only, and GT and RT do not read it.
        key_strides: Pooling of the keys; None: to the coarsest level's grid.
        fusion: How the branches join the pyramid.
        pyramid: The wrapped neck.
    """

    divisor: int
    least: int = 1
    branches: tuple[str, ...] = BRANCHES
    spare_finest: bool = False
    key_strides: int | None = None
    fusion: str = 'residual'
    pyramid: str = 'FPN'

    def embed_channels(self, channels: int, parts: int) -> int:
        """E for C channels, a multiple of the mixtures' ``parts``."""
        embed = max(channels // self.divisor, min(self.least, channels))
        return max(embed // parts, 1) * parts

    def first_levels(self, num_levels: int,
                     one_size: bool = False) -> dict[str, int]:
        """First level of each branch.

        Args:
            num_levels: Number of transformed levels.
            one_size: Whether their maps have one size, so that none is finest.
        """
        spared = int(self.spare_finest and num_levels >= 4 and not one_size)
        return {name: spared if name in _CROSS else 0 for name in BRANCHES}

    def unless_given(self, name: str, given: Any) -> Any:
        """Config of a branch or of the pyramid: the given one, or its own."""
        if given != PRESET:
            return given
        if name == 'pyramid':
            return dict(type=self.pyramid)
        if name not in self.branches:
            return None
        return default_branch(name)


def default_branch(name: str) -> dict[str, str]:
    """Config of a branch that a preset has."""
    return dict(type=''.join(word.title() for word in name.split('_')))


PRESETS = {
    'light':
    Preset(divisor=8, least=32, branches=('self_transformer', )),
    'default':
    Preset(divisor=4, least=32, spare_finest=True),
    'full':
    Preset(divisor=2),
    'paper':
    Preset(
        divisor=1, key_strides=1, fusion='concat', pyramid='BottomUpPyramid'),
}


def find_preset(name: str | None) -> Preset:
    """Return the preset of this name; None is the default one.

    Raises:
        ValueError: There is none of this name.
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
    """First level of each branch, counted from the finest.

    Args:
        first_level: One for all branches, or a dict of one for each branch it
            names, 0 for the others; None: the preset's.
        num_levels: Number of transformed levels.
        preset: Where to look if ``first_level`` is None.
        one_size: Whether the levels have one size.

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
