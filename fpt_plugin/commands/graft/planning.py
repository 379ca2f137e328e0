"""What is grafted where: the config of the new model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmengine.config import Config, ConfigDict

from .backbone import add_lambda_plugins, replace_backbone
from .neck import neck_config, takes_neck
from .sites import (
    Refusal,
    Site,
    Unbuildable,
    find_sites,
    probe,
    type_name,
)
from .training import set_training

PACKAGE = 'fpt_plugin'


@dataclass(frozen=True)
class Options:
    """What is grafted, and how it is to be trained.

    Attributes:
        neck: One of :data:`.neck.NECKS`; None: FPT, or the
            Self-Transformer alone where there is one map. Where a backbone is
            asked for, None leaves the neck as it is.
        levels: Maps that FPT transforms; None: those of backbone maps.
        key_strides: FPT's.
        preset: FPT's, one of :data:`.neck.PRESETS`.
        neck_options: Other arguments of FPT.
        backbone: ``'lambda-resnet50'`` and the like, in place of a ResNet of
            that depth.
        lambda_plugins: Whether gated lambda layers go into the ResNet.
        train_neck_only: Whether what was there before stays as it is.
        lr_mult: Factor of the learning rate of what is grafted.
        load_from: Weights to start from.
    """

    neck: str | None = None
    levels: int | None = None
    key_strides: int | list[int] | None = None
    preset: str | None = None
    neck_options: Mapping = field(default_factory=dict)
    backbone: str | None = None
    lambda_plugins: bool = False
    train_neck_only: bool = False
    lr_mult: float | None = None
    load_from: str | None = None

    @property
    def grafts_neck(self) -> bool:
        """Whether the neck is meant."""
        return self.neck is not None or not (self.backbone
                                             or self.lambda_plugins)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is new, in the words of the optimizer wrapper's constructor."""
        asked = dict(FPT=self.grafts_neck, LambdaLayer=self.lambda_plugins,
                     LambdaResNet=self.backbone)
        return tuple(kind for kind, yes in asked.items() if yes)

    @property
    def identical(self) -> bool:
        """Whether the model shall be as it was at step 0."""
        return self.backbone is None


@dataclass(frozen=True)
class Plan:
    """A config with its grafts, and what is known of them.

    Attributes:
        cfg: The new config.
        sites: The detectors that got something.
        notes: What was done, and what was left alone and why.
    """

    cfg: Config
    sites: tuple[Site, ...]
    notes: tuple[str, ...]


def graft(cfg: Config, neck: str | None = None, **options) -> Config:
    """Put FPT into the neck of every detector in a config.

    Args:
        cfg: A config of mmdet, mmseg or a library above them; it stays as it
            is.
        neck: One of :data:`.neck.NECKS`; see :class:`Options`.
        **options: The other fields of :class:`Options`.

    Returns:
        A new config: the model with its grafts, this package among the custom
        imports, and what training them needs.

    Raises:
        TypeError: ``cfg`` is no config, or an option has the wrong type.
        ValueError: The model cannot take the graft, which says why and what
            would be needed (:class:`~.sites.Refusal`), or an option is
            out of range.
        RuntimeError: The plain model does not build.
    """
    return plan(cfg, Options(neck=neck, **options)).cfg


def plan(cfg: Config, options: Options) -> Plan:
    """As :func:`graft`, and tell what was done."""
    if not isinstance(cfg, Config):
        raise TypeError(f'cfg must be a Config, got {type(cfg).__name__}')
    if not isinstance(cfg.get('model'), Mapping):
        raise Refusal('the config must set model, got '
                      f'{type(cfg.get("model")).__name__}')
    if options.backbone and options.lambda_plugins:
        raise ValueError('backbone and lambda_plugins exclude each other: a '
                         'LambdaResNet has its lambda layers')
    found = find_sites(cfg.model, cfg.get('default_scope'))
    if not found:
        raise Refusal(
            f'the model ({type_name(cfg.model)}) has no dict with a backbone, '
            'so it has no place for a neck between backbone and heads')
    new = copy.deepcopy(cfg)
    sites, notes = [], []
    if options.grafts_neck:
        sites, notes = _graft_necks(new, found, options)
    if options.backbone or options.lambda_plugins:
        changed, more = _graft_backbones(new, found, options)
        sites = list(dict.fromkeys(
            [h.path for h in sites] + [h.path for h in changed]))
        sites = [h for h in found if h.path in sites]
        notes += more
    _import_package(new)
    set_training(new, [h.path for h in sites], options.kinds,
                 options.train_neck_only, options.lr_mult, options.load_from)
    return Plan(new, tuple(sites), tuple(notes))


def _graft_necks(new: Config, found: list[Site],
                 options: Options) -> tuple[list[Site], list[str]]:
    with_neck = [site for site in found if site.has_neck]
    sites, notes, errors = [], [], []
    for site in with_neck or found:
        try:
            if not with_neck and not takes_neck(site):
                raise Refusal(f'{site.name} ({type_name(site.cfg)}) has no '
                              'neck, and its class no place for one')
            neck = neck_config(site, probe(site), options.neck,
                               options.levels, options.key_strides,
                               options.preset, options.neck_options)
        except (Refusal, Unbuildable) as error:
            errors.append(error)
            notes.append(f'left alone: {error}')
            continue
        _set(new, site, 'neck', neck)
        sites.append(site)
        was = type_name(site.cfg['neck']) if site.has_neck else 'no neck'
        notes.append(f'{site.name}.neck: {was} -> {_described(neck)}')
    _require_one(sites, errors)
    return sites, notes


def _require_one(sites: list[Site], errors: list[Exception]) -> None:
    """Raise what was wrong with all of them."""
    if not sites:
        raise errors[0] if len(errors) == 1 else type(errors[0])(
            '; '.join(map(str, errors)))


def _described(neck: Mapping | list) -> str:
    if isinstance(neck, list):
        return type_name(neck)
    pyramid = neck.get('pyramid', dict(type='FPN'))
    inside = 'the backbone\'s maps' if pyramid is None else type_name(pyramid)
    return f'{neck["type"]} around {inside}'


def _graft_backbones(new: Config, found: list[Site],
                     options: Options) -> tuple[list[Site], list[str]]:
    sites, notes, errors = [], [], []
    for site in found:
        try:
            backbone = replace_backbone(site, options.backbone) \
                if options.backbone else add_lambda_plugins(site)
        except (Refusal, Unbuildable) as error:
            errors.append(error)
            notes.append(f'left alone: {error}')
            continue
        _set(new, site, 'backbone', backbone)
        if options.backbone and 'pretrained' in site.cfg:
            # mmseg's way to a backbone's weights
            _set(new, site, 'pretrained', None)
        sites.append(site)
        notes.append(f'{site.name}.backbone: {type_name(site.cfg["backbone"])} '
                     f'-> {options.backbone or "with lambda layers"}')
    _require_one(sites, errors)
    return sites, notes


def _set(cfg: Config, site: Site, key: str, value: object) -> None:
    """Put a value into a site; dicts inside get the config's own class."""
    node = cfg.model
    for step in site.path:
        node = node[step]
    node[key] = ConfigDict(value=value).value


def _import_package(cfg: Config) -> None:
    """Append this package to the config's custom imports.

    Raises:
        TypeError: They are no list of names.
    """
    custom = dict(cfg.get('custom_imports') or dict(
        imports=[], allow_failed_imports=False))
    names = custom.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if any(not isinstance(name, str) for name in names):
        raise TypeError('custom_imports must have a list of names, got '
                        f'{names!r}')
    if PACKAGE not in names:
        cfg.custom_imports = dict(custom, imports=[*names, PACKAGE])


