"""Shipped configs without weights that would be downloaded."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from fpt_plugin import FPT
from fpt_plugin.commands.doctor.checks import stack_of
from fpt_plugin.commands.doctor.command import installed
from fpt_plugin.openmmlab.pins import LIBRARIES

# 'stock' or 'onedl': the installed packages.
STACK = stack_of(next(iter(set(LIBRARIES['mmcv'][0]) & set(installed()))))
CONFIGS = Path(__file__).parents[2] / 'configs'
ALL = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob('*/*.py')
             if path.parent.name != '_base_')


def folder(name: str) -> str:
    return name.partition('/')[0]


def load(name: str) -> Config:
    """Read a shipped config."""
    return without_weights(Config.fromfile(CONFIGS / name))


def load_host(name: str) -> Config:
    """Read the config of mmdet or mmseg below a shipped one."""
    return without_weights(Config.fromstring(f'_base_ = {host_of(name)!r}', '.py'))


def without_weights(cfg: Config) -> Config:
    if 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None
    if 'pretrained' in cfg.model:  # mmseg's
        cfg.model.pretrained = None
    return cfg


def build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def host_of(name: str) -> str:
    """Return the root of a config's bases, of several bases the first one."""
    base = re.match(r"_base_ = \[?\s*'(.*?)'", (CONFIGS / name).read_text())[1]
    return base if '::' in base else host_of(f'{folder(name)}/{base}')


def host_has(name: str) -> bool:
    """Tell whether the root config has the head and backbone of a shipped one.

    All ResNets count as equal: they differ in depth, which a setting changes.
    """
    if 'depth' in load(name).model.backbone:
        return True
    ours, host = (
        [cfg.model[part].type for part in ('backbone', 'decode_head', 'roi_head')
         if part in cfg.model] for cfg in (load(name), load_host(name)))
    return ours == host


def without_fpt(name: str) -> Config:
    """Read a shipped config with only the pyramid inside FPT as its neck."""
    cfg = load(name)
    neck = dict(cfg.model.neck)
    pyramid = neck.get('pyramid', dict(type='FPN'))
    if isinstance(pyramid, dict):
        own = set(inspect.signature(FPT).parameters) - {
            'in_channels', 'out_channels', 'num_outs'}
        pyramid = {**{k: v for k, v in neck.items() if k not in own}, **pyramid}
    cfg.model.neck = pyramid
    return cfg
