"""What a built model tells of itself."""

from __future__ import annotations

import pytest
import torch
from helpers.graft_detectors import BACKBONE, FPN, retinanet
from mmengine.registry import MODELS
from torch import nn

from fpt_plugin.commands.complexity.command import complexity
from fpt_plugin.commands.export.graph import Features
from fpt_plugin.commands.graft import graft
from fpt_plugin.commands.graft.costs import costs
from fpt_plugin.commands.graft.proof import prove
from fpt_plugin.openmmlab.models import build_model, image_channels


class Patches(nn.Module):
    """Patches as rows of a matrix, as some transformers take them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)  # registered first, run last
        self.project = nn.Linear(channels * 16, 8)

    def forward(self, x):
        rows = nn.functional.unfold(x, 4, stride=4)  # (B, C * 16, n)
        return self.norm(self.project(rows.transpose(1, 2)))


class LateStem(nn.Module):
    """What runs first is registered last, and the images are normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stage = nn.Conv2d(16, 16, 3)
        self.stem = nn.Conv2d(channels, 16, 3)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.stage(self.stem(self.norm(x)))


BACKBONES = [
    (dict(type='mmdet.ResNet', depth=18, in_channels=4), 4),
    (dict(type='mmdet.CSPDarknet', widen_factor=0.125), 3),  # joins four pixels
    (dict(type='mmseg.MixVisionTransformer', in_channels=2, embed_dims=16), 2),
    (dict(type='mmdet.PyramidVisionTransformer', num_layers=[1, 1, 1, 1]), 3),
    (dict(type='LambdaResNet', depth='26t', in_channels=1), 1),
]


@pytest.mark.parametrize('cfg, channels', BACKBONES)
def test_channels_of_the_hosts_backbones(cfg, channels):
    assert image_channels(MODELS.build(dict(cfg))) == channels


@pytest.mark.parametrize('kind', [Patches, LateStem])
@pytest.mark.parametrize('channels', [1, 3, 5])
def test_the_first_layer_that_runs_tells(kind, channels):
    for device in ('cpu', 'meta'):
        with torch.device(device):
            model = kind(channels)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        assert image_channels(model) == channels
        if device == 'cpu':  # nothing has run
            assert all(torch.equal(v, before[k])
                       for k, v in model.state_dict().items())
        assert not any(m._forward_pre_hooks for m in model.modules())


def test_nothing_that_runs():
    assert image_channels(nn.Identity()) == 3
    assert image_channels(nn.ModuleList([nn.Conv2d(6, 1, 1)])) == 6


PREPROCESSORS = {
    'four channels without a mean': (4, dict(mean=None, std=None)),
    'grey without a mean': (1, dict(mean=None, std=None)),
    'one mean for three channels': (3, dict(mean=[0.], std=[255.])),
}


@pytest.mark.parametrize('name', PREPROCESSORS)
def test_the_commands_ask_the_model(name):
    channels, preprocessor = PREPROCESSORS[name]
    cfg = retinanet(FPN)
    cfg.model.backbone = dict(BACKBONE, in_channels=channels)
    cfg.model.data_preprocessor = dict(
        type='DetDataPreprocessor', pad_size_divisor=32, **preprocessor)
    new = graft(cfg)
    proof = prove(cfg, new)
    assert proof.identical and proof.effective and proof.heads_compared
    assert complexity(cfg, (64, 64)).inputs == ((1, channels, 64, 64), )
    spent = costs(cfg, new, (64, 64), repeats=1, memory=False)
    assert all(c.total.macs for c in spent.counts.values())
    assert Features(build_model(new)).channels == channels


def test_channels_that_no_setting_names():
    """The config of the backbone has no in_channels."""

    @MODELS.register_module(name='SixChannels', force=True)
    def six(**kwargs):
        return MODELS.build(dict(type='mmdet.ResNet', in_channels=6, **kwargs))

    cfg = retinanet(FPN)
    backbone = {k: v for k, v in BACKBONE.items() if k != 'type'}
    cfg.model.backbone = dict(type='SixChannels', **backbone)
    proof = prove(cfg, graft(cfg))
    assert proof.identical and proof.heads_compared
