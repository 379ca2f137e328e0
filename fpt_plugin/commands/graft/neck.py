"""Make the config of a neck with FPT from the config of any neck."""

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

# FPT's own arguments. Arguments of a wrapped neck with the same names must go into
# pyramid=dict().
_OWN = {
    name for name, parameter in inspect.signature(FPT).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
} - {'in_channels', 'out_channels', 'num_outs'}

# Presets that do not change a detector's outputs before training.
PRESETS = tuple(name for name, preset in presets.PRESETS.items()
                if preset.fusion == 'residual')

# Arguments that the graft sets by itself.
_SET_BY_GRAFT = ('in_channels', 'out_channels', 'num_outs', 'pyramid', 'num_levels')


def neck_config(site: Site,
                maps: Maps,
                neck: str | None = None,
                levels: int | None = None,
                key_strides: list[int] | int | None = None,
                preset: str | None = None,
                options: Mapping | None = None) -> dict | list:
    """Wrap the neck of a site, or append FPT to its list of necks.

    Args:
        site: The site.
        maps: Inputs and outputs of its neck.
        neck: One of :data:`NECKS`; None: FPT, or only the Self-Transformer if
            there is one map, because the other branches need two.
        levels: Number of maps to transform, from the finest; None: those made
            from backbone maps.
        key_strides: Argument of FPT.
        preset: One of :data:`PRESETS`; None: FPT's default.
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
                f'{neck} passes features between maps, and {site.name} has only '
                'one: use SelfTransformerNeck')
        neck = neck or 'SelfTransformerNeck'
    own = dict(options or {})
    reserved = sorted({'type', *_SET_BY_GRAFT} & set(own))
    if reserved:
        raise ValueError('neck_options must not have arguments that the graft '
                         f'sets, got {reserved}')
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
    """Return whether a neck's config has FPT in it."""
    if isinstance(neck, (list, tuple)):
        return any(map(holds_fpt, neck))
    if not isinstance(neck, Mapping):
        return False
    return type_name(neck).rpartition('.')[2] in NECKS or holds_fpt(
        neck.get('pyramid'))


def _levels(site: Site, maps: Maps, levels: int | None) -> int:
    """Return the number of maps to transform, after a check of their shapes.

    They must have equal channels and be ordered from fine to coarse.
    """
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
    elif maps.declared_levels and maps.declared_levels <= len(outputs):
        count = maps.declared_levels
    else:
        count = maps.inferred_levels
    or_one = ', or levels=1' if site.has_neck else ''
    subject = f'the {part} of {site.name} ({type_name(site.cfg[part])})'
    channels = [shape[1] for shape in outputs[:count]]
    if len(set(channels)) > 1:
        raise Refusal(
            f'{subject} returns maps of {channels} channels, and a transformer '
            'compares maps of equal channels; use a neck that gives all maps '
            'the same channels, such as FPN or ChannelMapper, with a head '
            f'that fits{or_one}')
    sizes = [shape[2:] for shape in outputs[:count]]
    for fine, coarse in zip(sizes, sizes[1:]):
        if coarse[0] > fine[0] or coarse[1] > fine[1]:
            raise Refusal(
                f'{subject} returns maps from coarse to fine, of sizes {sizes}; '
                'FPT needs them from fine to coarse: use a neck with that '
                f'order, with heads that fit{or_one}')
    return count


def _combined(site: Site, maps: Maps, neck: str, count: int,
              own: dict) -> dict | list:
    old = site.cfg.get('neck')
    channels = maps.outputs[0][1]
    appended = dict(
        type=neck,
        pyramid=None,
        in_channels=channels,
        out_channels=channels,
        num_levels=count,
        **own)
    if not site.has_neck:
        return appended
    if isinstance(old, (list, tuple)):
        # The other necks keep their indices, and so their checkpoint keys.
        return [*old, appended]
    num_levels = {} if count == maps.declared_levels else dict(num_levels=count)
    if _OWN.isdisjoint(set(old) - {'type'}) and 'in_channels' in old \
            and isinstance(old.get('out_channels'), int):
        # FPT passes all other arguments to its pyramid.
        new = {**old, 'type': neck, **num_levels, **own}
        if old['type'] != 'FPN' or own.get('preset') == 'paper':
            new['pyramid'] = dict(type=old['type'])
        return new
    return dict(
        type=neck,
        in_channels=[shape[1] for shape in maps.inputs],
        out_channels=channels,
        pyramid=dict(old),
        **num_levels,
        **own)


def _check_builds(site: Site, neck: dict | list) -> None:
    """Build the neck, so that FPT checks its arguments."""
    with MODELS.switch_scope_and_registry(site.scope) as registry:
        try:
            with torch.device('meta'):
                registry.build(copied(neck))
        except (NotImplementedError, RuntimeError):  # not possible on meta
            registry.build(copied(neck))


def takes_neck(site: Site) -> bool:
    """Return whether the class of a site without a neck accepts one."""
    with MODELS.switch_scope_and_registry(site.scope) as registry:
        cls = lookup(registry, site.cfg.get('type'))
    if cls is None:
        return False
    parameters = inspect.signature(cls).parameters
    return 'neck' in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values())
