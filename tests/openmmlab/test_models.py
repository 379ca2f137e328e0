"""The number of image channels of any model."""

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
    """Embed patches by a linear layer, as some transformers do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)  # registered first, runs last
        self.project = nn.Linear(channels * 16, 8)

    def forward(self, x):
        rows = nn.functional.unfold(x, 4, stride=4)  # (B, C * 16, n)
        return self.norm(self.project(rows.transpose(1, 2)))


class LateStem(nn.Module):
    """Run the last registered modules first: a norm of the images, and the stem."""

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
def test_backbones_of_the_libraries(cfg, channels):
    assert image_channels(MODELS.build(dict(cfg))) == channels


@pytest.mark.parametrize('kind', [Patches, LateStem])
@pytest.mark.parametrize('channels', [1, 3, 5])
def test_the_first_layer_that_runs_counts(kind, channels):
    for device in ('cpu', 'meta'):
        with torch.device(device):
            model = kind(channels)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        assert image_channels(model) == channels
        if device == 'cpu':  # nothing has run
            assert all(torch.equal(v, before[k])
                       for k, v in model.state_dict().items())
        assert not any(m._forward_pre_hooks for m in model.modules())


def test_modules_that_do_not_run():
    assert image_channels(nn.Identity()) == 3
    assert image_channels(nn.ModuleList([nn.Conv2d(6, 1, 1)])) == 6


@pytest.mark.parametrize('channels, preprocessor', [
    (4, dict(mean=None, std=None)), (1, dict(mean=None, std=None)),
    (3, dict(mean=[0.], std=[255.]))])
def test_commands_use_the_channels_of_the_model(channels, preprocessor):
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
