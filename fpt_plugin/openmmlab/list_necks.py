"""Checkpoints of a plain neck for the list of necks that continues it."""

from __future__ import annotations

from functools import wraps

from mmengine.model import Sequential
from torch import nn


def load_plain_necks_into_lists() -> None:
    """Let ``neck=[FPN, FPT(pyramid=None)]`` load what ``neck=FPN`` saved.

    mmengine makes a Sequential of a list of necks. Its keys begin with the
    number of the neck, so all those of the plain neck would be left over. FPT
    sees no keys but its own: only the list can rename them.
    """
    original = Sequential._load_from_state_dict
    if getattr(original, 'takes_plain_necks', False):
        return

    @wraps(original)
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        adopt_plain_neck(state_dict, prefix, self)
        return original(self, state_dict, prefix, *args, **kwargs)

    _load_from_state_dict.takes_plain_necks = True
    Sequential._load_from_state_dict = _load_from_state_dict


def adopt_plain_neck(state_dict: dict, prefix: str, necks: nn.Module) -> None:
    """Give a single neck's keys to a list that FPT continues.

    Those of a plain neck go to the first one. Of an FPT around a neck or a
    list the pyramid's go to the necks before FPT, the others to FPT.

    Args:
        state_dict: Changed in place. A key that is there under its new name is
            left alone.
        prefix: That of the necks, with its final dot, or ''.
        necks: Nothing is done where it is no list, or no FPT continues it.
    """
    if not isinstance(necks, nn.Sequential):
        return
    places = [i for i, child in enumerate(necks) if i and _continues(child)]
    if not places:
        return
    own = necks[places[0]].OWN_CHILDREN
    wrapped = '' if places[0] > 1 else '0.'  # a list has numbers itself
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix):]
        child, _, rest = name.partition('.')
        if child in necks._modules:
            continue
        if child not in own:
            renamed = f'{prefix}0.{name}'
        elif child == 'pyramid':
            renamed = f'{prefix}{wrapped}{rest}'
        else:
            renamed = f'{prefix}{places[0]}.{name}'
        if renamed not in state_dict:
            state_dict[renamed] = state_dict.pop(key)


def _continues(module: nn.Module) -> bool:
    """Whether it is FPT without a pyramid; necks stand above this package."""
    return hasattr(module, 'OWN_CHILDREN') and module.pyramid is None
