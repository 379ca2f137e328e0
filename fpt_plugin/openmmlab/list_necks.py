"""Load checkpoints of a single neck into a list of necks that ends with FPT."""

from __future__ import annotations

from functools import wraps

from mmengine.model import Sequential
from torch import nn


def load_plain_necks_into_lists() -> None:
    """Make ``neck=[FPN, FPT(pyramid=None)]`` load checkpoints of ``neck=FPN``.

    mmengine makes a Sequential of a list of necks. Its keys begin with the
    index of the neck, so all keys of the plain neck would be unexpected. FPT
    sees only its own keys, so the Sequential has to rename them.
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
    """Rename the keys of a single neck to those of a list of necks with FPT.

    Keys of a plain neck become keys of the first neck in the list. If the
    checkpoint's neck is an FPT that wraps a pyramid, the pyramid's keys become
    keys of the necks before FPT, and the other keys become FPT's.

    Args:
        state_dict: Changed in place. A key is kept if its new name is taken.
        prefix: Prefix of the necks' keys, with its final dot, or ''.
        necks: The Sequential. Other modules, and lists without an FPT after the
            first neck, are ignored.
    """
    if not isinstance(necks, nn.Sequential):
        return
    indices = [i for i, child in enumerate(necks) if i and _is_bare_fpt(child)]
    if not indices:
        return
    own = necks[indices[0]].OWN_CHILDREN
    # The keys of a wrapped list of necks begin with an index already.
    wrapped = '' if indices[0] > 1 else '0.'
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
            renamed = f'{prefix}{indices[0]}.{name}'
        if renamed not in state_dict:
            state_dict[renamed] = state_dict.pop(key)


def _is_bare_fpt(module: nn.Module) -> bool:
    """Return whether it is an FPT without a pyramid.

    FPT's class cannot be imported here: necks import this package.
    """
    return hasattr(module, 'OWN_CHILDREN') and module.pyramid is None
