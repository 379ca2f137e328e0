"""The config of a neck with FPT in it, whatever stood there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from mmengine.registry import MODELS

from ...layers.checks import check_positive_int
from ...necks import FPT, presets
from ...openmmlab.registry import lookup
from .sites import Maps, Refusal, Site, copied, type_name

NECKS = ('FPT', 'SelfTransformerNeck', 'GroundingTransformerNeck',
         'RenderingTransformerNeck')

# FPT's own arguments; a wrapped neck's of the same name go into pyramid=dict().
_OWN = {
    name for name, parameter in inspect.signature(FPT).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
} - {'in_channels', 'out_channels', 'num_outs'}

# Those that leave a detector as it is until it is trained.
PRESETS = tuple(name for name, preset in presets.PRESETS.items()
                if preset.fusion == 'residual')

_DECIDED = ('in_channels', 'out_channels', 'num_outs', 'pyramid', 'num_levels')


def neck_config(site: Site,
                maps: Maps,
                neck: str | None = None,
                levels: int | None = None,
                key_strides: list[int] | int | None = None,
                preset: str | None = None,
                options: Mapping | None = None) -> dict | list:
    """Wrap the neck of a site, or continue its list of necks.

    Args:
        site: Where it stands.
        maps: What flows through it.
        neck: One of :data:`NECKS`; None: FPT, or the Self-Transformer alone
            for one map, to which the others have nothing to add.
        levels: How many of the maps are transformed, from the finest; None:
            those that backbone maps stand behind.
        key_strides: As FPT's.
        preset: One of :data:`PRESETS`; None: FPT's own default.
        options: Other arguments of FPT.

    Raises:
        Refusal: The maps cannot be transformed.
        ValueError: An argument is out of range.
        TypeError: An argument has the wrong type.
    """
    if neck is not None and neck not in NECKS:
        raise ValueError(f'neck must be one of {NECKS}, got {neck!r}')
    if holds_fpt(site.cfg.get('neck')):
        raise Refusal(f'{site.name} has FPT in its neck already: '
                      f'{type_name(site.cfg["neck"])}')
    count = _levels(site, maps, levels)
    if count == 1:
        if neck in ('GroundingTransformerNeck', 'RenderingTransformerNeck'):
            raise Refusal(
                f'{neck} passes features between maps, and {site.name} gives it '
                'one: take SelfTransformerNeck')
        neck = neck or 'SelfTransformerNeck'
    own = dict(options or {})
    decided = sorted({'type', *_DECIDED} & set(own))
    if decided:
        raise ValueError(f'neck_options must be other arguments of FPT than '
                         f'{decided}, which the graft decides')
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f'preset must be one of {PRESETS}, got {preset!r}')
        if own.setdefault('preset', preset) != preset:
            raise ValueError(f'preset={preset!r} and neck_options '
                             f'preset={own["preset"]!r} exclude each other')
    if key_strides is not None:
        own['key_strides'] = key_strides
    new = _combined(site, maps, neck or 'FPT', count, own)
    _check_builds(site, new)
    return new


def holds_fpt(neck: object) -> bool:
    """Whether a neck's config has FPT in it."""
    if isinstance(neck, (list, tuple)):
        return any(map(holds_fpt, neck))
    if not isinstance(neck, Mapping):
        return False
    return type_name(neck).rpartition('.')[2] in NECKS or holds_fpt(
        neck.get('pyramid'))


def _levels(site: Site, maps: Maps, levels: int | None) -> int:
    """How many maps are transformed: of equal channels, from fine to coarse."""
    outputs = maps.outputs
    part = 'neck' if site.has_neck else 'backbone'
    if not outputs:
        raise Refusal(f'the {part} of {site.name} returns no maps')
    if levels is not None:
        check_positive_int('levels', levels)
        if levels > len(outputs):
            raise ValueError(f'levels must be at most {len(outputs)}, the '
                             f'number of maps of the {part} of {site.name}, '
                             f'got {levels}')
        count = levels
    elif maps.told_levels and maps.told_levels <= len(outputs):
        count = maps.told_levels
    else:
        count = maps.usual_levels
    one = ', or levels=1' if site.has_neck else ''
    where = f'the {part} of {site.name} ({type_name(site.cfg[part])})'
    channels = [shape[1] for shape in outputs[:count]]
    if len(set(channels)) > 1:
        raise Refusal(
            f'{where} returns maps of {channels} channels, and a transformer '
            'compares maps of equal channels; needed is a neck that brings '
            'them to one number, such as FPN or ChannelMapper, with a head '
            f'that takes it{one}')
    sizes = [shape[2:] for shape in outputs[:count]]
    for fine, coarse in zip(sizes, sizes[1:]):
        if coarse[0] > fine[0] or coarse[1] > fine[1]:
            raise Refusal(
                f'{where} returns maps from coarse to fine, of sizes {sizes}; '
                'FPT wants them from fine to coarse, so needed is a neck that '
                f'orders them so, with heads that know it{one}')
    return count


def _combined(site: Site, maps: Maps, neck: str, count: int,
              own: dict) -> dict | list:
    old = site.cfg.get('neck')
    channels = maps.outputs[0][1]
    alone = dict(
        type=neck,
        pyramid=None,
        in_channels=channels,
        out_channels=channels,
        num_levels=count,
        **own)
    if not site.has_neck:
        return alone
    if isinstance(old, (list, tuple)):
        # The keys of the necks before it stay as they are.
        return [*old, alone]
    told = {} if count == maps.told_levels else dict(num_levels=count)
    written = old.get('out_channels')
    if _OWN.isdisjoint(set(old) - {'type'}) and 'in_channels' in old \
            and isinstance(written, int):
        # FPT passes on what is not its own.
        new = {**old, 'type': neck, **told, **own}
        if old['type'] != 'FPN' or own.get('preset') == 'paper':
            new['pyramid'] = dict(type=old['type'])
        return new
    return dict(
        type=neck,
        in_channels=[shape[1] for shape in maps.inputs],
        out_channels=channels,
        pyramid=dict(old),
        **told,
        **own)


def _check_builds(site: Site, neck: dict | list) -> None:
    """Let FPT say what it thinks of its arguments."""
    with MODELS.switch_scope_and_registry(site.scope) as registry:
        try:
            with torch.device('meta'):
                registry.build(copied(neck))
        except (NotImplementedError, RuntimeError):  # it computes with data
            registry.build(copied(neck))


def takes_neck(site: Site) -> bool:
    """Whether the class of a site without a neck has a place for one."""
    with MODELS.switch_scope_and_registry(site.scope) as registry:
        cls = lookup(registry, site.cfg.get('type'))
    if cls is None:
        return False
    parameters = inspect.signature(cls).parameters
    return 'neck' in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values())
