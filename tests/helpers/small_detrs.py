"""Detectors of the DETR family, shipped ones and mmdet's, at a small size."""

from __future__ import annotations

import copy
from functools import cache

import torch
from mmengine.config import Config
from torch import nn

from helpers.shipped_configs import build, load, without_weights

# Two images in a batch of 80x96, with padding.
SIZES = [(64, 96), (80, 64)]


def width_of(model: dict) -> int:
    """Return the channels of the transformer; most encode boxes in 4 x 64 channels."""
    plain = model.type in ('DeformableDETR', 'PyramidMemoryDETR')
    return 64 if plain and not model.get('as_two_stage') else 256


@cache
def _read(name: str) -> Config:
    if '::' in name:
        return without_weights(Config.fromstring(f'_base_ = {name!r}', '.py'))
    return load(name)


def small(name: str, **changes) -> Config:
    """Read a config with one layer and few channels.

    Args:
        name: ``fpt/...`` or ``mmdet::...``.
        changes: Settings of the model.
    """
    cfg = copy.deepcopy(_read(name))
    cfg.merge_from_dict(dict(model=changes))
    model = cfg.model
    width = width_of(model)
    _replace(model, dict(embed_dims=width, feedforward_channels=64,
                         num_feats=width // 2, num_layers=1))
    if model.get('detector', model.type) in ('ConditionalDETR', 'DABDETR', 'DDQDETR'):
        model.decoder.num_layers = 2  # the first layer lacks parts of the others
    model.backbone.update(depth=18, base_channels=16)
    model.neck.update(
        in_channels=[16 * 2**i for i in model.backbone.out_indices],
        out_channels=width)
    model.num_queries = 10
    model.bbox_head.update(embed_dims=width, num_classes=3)
    model.test_cfg = dict(max_per_img=10)
    if 'dn_cfg' in model:
        model.dn_cfg.group_cfg.num_dn_queries = 6
    return cfg


def _replace(cfg: dict, values: dict) -> None:
    for key, value in cfg.items():
        if isinstance(value, dict):
            _replace(value, values)
        elif key in values:
            cfg[key] = values[key]


def make(name: str, **changes) -> nn.Module:
    """Build the model; move all weights of transformer and head away from zero."""
    model = build(small(name, **changes))
    model.init_weights()
    with torch.no_grad():
        for key, p in model.named_parameters():
            # the branches of FPT must start at zero, and the backbone is deep
            if not key.startswith(('backbone', 'neck')):
                p.add_(0.02 * torch.randn_like(p))
    return model


def batch(model: nn.Module, training: bool = True) -> dict:
    """Return two padded images and their boxes, the same in each call."""
    from mmdet.testing import demo_mm_inputs
    data = demo_mm_inputs(2, [[3, *size] for size in SIZES], num_classes=3)
    return model.data_preprocessor(data, training)
