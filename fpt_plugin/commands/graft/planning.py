"""Plan a graft: find the sites and make the config of the new model."""

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
    """Settings of a graft and of its training.

    Attributes:
        neck: One of :data:`.neck.NECKS`; None: FPT, or only the
            Self-Transformer if there is one map. With ``backbone`` or
            ``lambda_plugins``, None keeps the neck.
        levels: Number of maps that FPT transforms; None: those made from backbone
            maps.
        key_strides: Argument of FPT.
        preset: Argument of FPT, one of :data:`.neck.PRESETS`.
        neck_options: Other arguments of FPT.
        backbone: A LambdaResNet that replaces the ResNet of the same depth, such
            as ``'lambda-resnet50'``.
        lambda_plugins: Whether to add gated lambda layers to the ResNet.
        train_neck_only: Whether to freeze all modules that are not grafted.
        lr_mult: Factor of the learning rate of the grafted modules.
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
        """Whether FPT is grafted into the neck."""
        return self.neck is not None or not (self.backbone
                                             or self.lambda_plugins)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The new modules, as GraftOptimWrapperConstructor names them."""
        grafted = dict(FPT=self.grafts_neck, LambdaLayer=self.lambda_plugins,
                       LambdaResNet=self.backbone)
        return tuple(kind for kind, used in grafted.items() if used)

    @property
    def identical(self) -> bool:
        """Whether the model must be identical to the plain one at step 0."""
        return self.backbone is None


@dataclass(frozen=True)
class Plan:
    """A config with its grafts.

    Attributes:
        cfg: The new config.
        sites: The detectors that were changed.
        notes: The changes, and the sites that were not changed and why.
    """

    cfg: Config
    sites: tuple[Site, ...]
    notes: tuple[str, ...]


def graft(cfg: Config, neck: str | None = None, **options) -> Config:
    """Put FPT into the neck of every detector in a config.

    Args:
        cfg: A config of mmdet, mmseg or a library based on them; it is not
            changed.
        neck: One of :data:`.neck.NECKS`; see :class:`Options`.
        **options: The other fields of :class:`Options`.

    Returns:
        A new config with the grafts, this package in its custom imports, and the
        settings for training.

    Raises:
        TypeError: ``cfg`` is no config, or an option has the wrong type.
        ValueError: The model cannot take the graft (a :class:`~.sites.Refusal`,
            which says why and what is needed), or an option is out of range.
        RuntimeError: The plain model does not build.
    """
    return plan(cfg, Options(neck=neck, **options)).cfg


def plan(cfg: Config, options: Options) -> Plan:
    """Do the same as :func:`graft`, and return notes on the changes too."""
    if not isinstance(cfg, Config):
        raise TypeError(f'cfg must be a Config, got {type(cfg).__name__}')
    if not isinstance(cfg.get('model'), Mapping):
        raise Refusal('the config must set model, got '
                      f'{type(cfg.get("model")).__name__}')
    if options.backbone and options.lambda_plugins:
        raise ValueError('backbone and lambda_plugins exclude each other: a '
                         'LambdaResNet has lambda layers already')
    found = find_sites(cfg.model, cfg.get('default_scope'))
    if not found:
        raise Refusal(
            f'the model ({type_name(cfg.model)}) has no dict with a backbone, '
            'so a neck cannot be added between backbone and heads')
    new = copy.deepcopy(cfg)
    sites, notes = [], []
    if options.grafts_neck:
        sites, notes = _graft_necks(new, found, options)
    if options.backbone or options.lambda_plugins:
        changed, more = _graft_backbones(new, found, options)
        sites = list(dict.fromkeys(
            [site.path for site in sites] + [site.path for site in changed]))
        sites = [site for site in found if site.path in sites]
        notes += more
    _import_package(new)
    set_training(new, [site.path for site in sites], options.kinds,
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
                              'neck, and its class takes none')
            neck = neck_config(site, probe(site), options.neck,
                               options.levels, options.key_strides,
                               options.preset, options.neck_options)
        except (Refusal, Unbuildable) as error:
            errors.append(error)
            notes.append(f'not changed: {error}')
            continue
        _set(new, site, 'neck', neck)
        sites.append(site)
        old = type_name(site.cfg['neck']) if site.has_neck else 'no neck'
        notes.append(f'{site.name}.neck: {old} -> {_described(neck)}')
    _require_one(sites, errors)
    return sites, notes


def _require_one(sites: list[Site], errors: list[Exception]) -> None:
    """Raise the errors of all sites if none could be changed."""
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
            notes.append(f'not changed: {error}')
            continue
        _set(new, site, 'backbone', backbone)
        if options.backbone and 'pretrained' in site.cfg:
            # mmseg's segmentors load the backbone's weights with it
            _set(new, site, 'pretrained', None)
        sites.append(site)
        notes.append(f'{site.name}.backbone: {type_name(site.cfg["backbone"])} '
                     f'-> {options.backbone or "with lambda layers"}')
    _require_one(sites, errors)
    return sites, notes


def _set(cfg: Config, site: Site, key: str, value: object) -> None:
    """Set a value of a site; dicts in it are converted to ConfigDict."""
    node = cfg.model
    for step in site.path:
        node = node[step]
    node[key] = ConfigDict(value=value).value


def _import_package(cfg: Config) -> None:
    """Append this package to the config's custom imports.

    Raises:
        TypeError: The custom imports are not a list of names.
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
