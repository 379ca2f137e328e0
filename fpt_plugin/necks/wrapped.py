"""Build the wrapped neck of mmdet or mmseg, and check its inputs and outputs.

Nothing here imports mmdet or mmseg: the registry finds the neck.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.checks import check_levels, check_map, refusing
from ..openmmlab.pins import SCOPES
from ..openmmlab.registry import lookup, missing_arguments, unknown_arguments


def build_pyramid(cfg: dict | list, optional: dict | None = None) -> nn.Module:
    """Build a neck, or a list of necks as a Sequential, in the active scope.

    If no scope is active, or the active one does not have the name, mmdet and
    then mmseg are tried.

    Args:
        cfg: Config of the neck, or a list of configs.
        optional: Arguments that a single neck gets if it accepts them and
            ``cfg`` does not set them.

    Raises:
        TypeError: ``cfg`` is not a dict or a list of dicts with a type, or
            the neck rejects its arguments.
        ValueError: The neck rejects the values of its arguments, or its type
            is not registered.
    """
    if isinstance(cfg, (list, tuple)):
        return Sequential(*(build_pyramid(item) for item in cfg))
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError('pyramid must be a dict with a type, a list of such '
                        f'dicts, or None, got {cfg!r}')
    cfg = dict(cfg)
    scope = cfg.pop('_scope_', None) or _library_of(cfg['type'])
    with MODELS.switch_scope_and_registry(scope) as registry:
        cls = lookup(registry, cfg['type'])
        if cls is None:
            raise ValueError(_unknown_type(cfg['type'], registry.scope))
        rejected = unknown_arguments(cls, optional or {})
        cfg.update((k, v) for k, v in (optional or {}).items()
                   if k not in cfg and k not in rejected)
        args = {k: v for k, v in cfg.items() if k != 'type'}
        _check_arguments(cls, args)
        with refusing(f'the pyramid {cls.__name__} of these arguments', args):
            return registry.build(cfg)


def _library_of(neck_type: str | type) -> str | None:
    """Return the library that has this neck; None keeps the active scope."""
    if not isinstance(neck_type, str) or '.' in neck_type:
        return None
    with MODELS.switch_scope_and_registry(None) as registry:
        if lookup(registry, neck_type) is not None:
            return None
    for scope in SCOPES:
        with MODELS.switch_scope_and_registry(scope) as registry:
            if registry.scope == scope and lookup(registry, neck_type):
                return scope
    return None


def _unknown_type(neck_type: str, scope: str) -> str:
    return (f'the pyramid {neck_type!r} is in no registry of the scope '
            f'{scope!r}. Name its library in the type, as in '
            f"'mmdet.{neck_type}' or 'mmseg.{neck_type}', or activate the "
            "library first: mmengine.registry.init_default_scope('mmdet')")


def _check_arguments(cls: type, args: dict) -> None:
    """Reject arguments that the constructor does not have; name them."""
    unknown = unknown_arguments(cls, args)
    if unknown:
        others = sorted(name for name, neck in _registered_necks()
                        if not unknown_arguments(neck, args)
                        and not missing_arguments(neck, args))
        hint = (
            f' Necks that take them: {", ".join(others)}. If FPT replaces one '
            f"of them, write pyramid=dict(type='{others[0]}')."
            if others else '')
        raise TypeError(
            f'the pyramid {cls.__name__} takes no argument '
            f'{", ".join(map(repr, unknown))}, got {sorted(args)}.{hint} '
            'An argument of FPT may be misspelt. mmengine keeps the arguments '
            'of the neck that FPT replaces unless the new dict has '
            '_delete_=True.')
    missing = missing_arguments(cls, args)
    if missing:
        raise TypeError(
            f'the pyramid {cls.__name__} needs {", ".join(map(repr, missing))}, '
            f'got {sorted(args)}')


def resolve_num_levels(num_levels: int | None, pyramid: nn.Module | None,
                       num_outs: int | None) -> int:
    """Return the number of maps to transform; default: those of backbone maps.

    Raises:
        TypeError: ``num_levels`` is not an int.
        ValueError: It is out of range, or None and the pyramid has no
            ``start_level`` and ``backbone_end_level``.
    """
    if num_levels is None:
        first = getattr(pyramid, 'start_level', None)
        end = getattr(pyramid, 'backbone_end_level', None)
        if first is None or end is None:
            raise ValueError(
                f'num_levels is required for {type(pyramid).__name__}, which '
                'has no start_level and backbone_end_level, got '
                'num_levels=None')
        num_levels = end - first
    check_levels('num_levels', num_levels)
    if num_outs is not None and num_levels > num_outs:
        raise ValueError('num_levels must be at most num_outs, the number of '
                         f'maps of the pyramid, got num_levels={num_levels} '
                         f'and num_outs={num_outs}')
    return num_levels


def check_inputs(pyramid: nn.Module, in_channels: list[int] | int,
                 inputs: Sequence[Tensor]) -> None:
    """Explain why the pyramid failed on its inputs.

    Call it only after a failure: a neck may ignore some of its inputs.

    Raises:
        TypeError: An input is not a floating point tensor.
        ValueError: An input is not (B, C, H, W), or has other channels.
    """
    weight = next(pyramid.parameters(), None)
    for i, x in enumerate(inputs):
        check_map(f'inputs[{i}]', x, weight=weight)
    if not isinstance(in_channels, (list, tuple)):
        return
    given = [x.shape[1] for x in inputs]
    if given != list(in_channels):
        raise ValueError(f'in_channels={list(in_channels)} does not fit the '
                         f'inputs, whose channels are {given}')


def check_pyramid(name: str, maps: Sequence[Tensor], num_levels: int,
                  channels: int) -> None:
    """Require maps of equal channels, from fine to coarse.

    Args:
        name: Name of the maps, for messages.
        maps: The maps (B, channels, H_i, W_i).
        num_levels: Number of maps that are needed and checked.
        channels: Channels of each.

    Raises:
        TypeError: A map is not a floating point tensor.
        ValueError: There are too few maps, or one does not fit.
    """
    if len(maps) < num_levels:
        raise ValueError('num_levels must be at most the number of maps of '
                         f'the pyramid, got num_levels={num_levels} '
                         f'and {len(maps)} maps')
    for level, x in enumerate(maps[:num_levels]):
        check_map(f'{name} {level}', x)
        if x.shape[1] != channels:
            raise ValueError(f'{name} {level} must have out_channels='
                             f'{channels} channels, got {tuple(x.shape)}')
        if level and (x.shape[2] > maps[level - 1].shape[2]
                      or x.shape[3] > maps[level - 1].shape[3]):
            raise ValueError(
                'levels must go from fine to coarse, got sizes '
                f'{[tuple(m.shape[2:]) for m in maps[:num_levels]]}')


def _registered_necks() -> list[tuple[str, type]]:
    """List names and classes of the necks that imported libraries register."""
    return [(name, cls) for scope in SCOPES
            if scope in MODELS.children
            for name, cls in MODELS.children[scope].module_dict.items()
            if '.necks.' in getattr(cls, '__module__', '')]
