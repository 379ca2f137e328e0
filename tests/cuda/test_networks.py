"""Necks and backbones on a GPU, in each precision of training."""

from __future__ import annotations

import shutil
import sysconfig
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import layer_formulas
from helpers.base import Unpacked, backbone_maps
from helpers.mixed_precision import PRECISIONS, TOLERANCES, Trained, agree, double
from helpers.oracles import randomise, settle_norms
from torch import nn

from fpt_plugin.backbones import LambdaResNet
from fpt_plugin.layers import LambdaLayer, SelfTransformer
from fpt_plugin.necks import (
    FPT,
    GroundingTransformerNeck,
    RenderingTransformerNeck,
    SelfTransformerNeck,
)

pytestmark = pytest.mark.cuda

CHANNELS = (8, 12, 16)
BRANCHES = dict(out_channels=12, embed_channels=8)
BOTTOM_UP = dict(
    BRANCHES, in_channels=list(CHANNELS), num_outs=3,
    pyramid=dict(type='BottomUpPyramid'))
# A neck, and the channels of its input maps.
NECKS = {
    'pyramid=None': (
        lambda: FPT(12, pyramid=None, num_levels=3, **BRANCHES), (12, 12, 12)),
    'concat': (
        lambda: FPT(12, pyramid=None, num_levels=3, key_strides=1,
                    fusion='concat', **BRANCHES), (12, 12, 12)),
    'bottom up': (lambda: FPT(**BOTTOM_UP), CHANNELS),
    'checkpointed': (
        lambda: FPT(checkpoint_branches=True, **BOTTOM_UP), CHANNELS),
    'self': (lambda: SelfTransformerNeck(**BOTTOM_UP), CHANNELS),
    'grounding': (lambda: GroundingTransformerNeck(**BOTTOM_UP), CHANNELS),
    'rendering': (lambda: RenderingTransformerNeck(**BOTTOM_UP), CHANNELS),
    'two levels': (
        lambda: FPT(12, pyramid=None, num_levels=2, key_strides=(2, 1),
                    **BRANCHES), (12, 12)),
    'ufp': (
        lambda: FPT(
            [16], pyramid=dict(type='UFP'), num_levels=4, key_strides=1,
            grounding_transformer=dict(
                type='LocalGroundingTransformer', window=3), **BRANCHES),
        (16, )),
}
BACKBONES = {
    'hybrid': partial(LambdaResNet, 50),
    'timm': partial(LambdaResNet, '26rpt'),
    'dilated': partial(
        LambdaResNet, '26t', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
}
# Dozens of layers. A ReLU may switch if its input is almost 0.
DEEP = {'float32': (1e-5, 1e-2), 'bfloat16': (1e-1, 5e-1),
        'float16': (2e-2, 2e-1)}


def skip_slow(device, precision):
    if device.type == 'cpu' and precision == 'float16':
        pytest.skip('float16 convolutions take minutes on a CPU')


def make_neck(name, device, size=(13, 18), batch=2,
              format=torch.contiguous_format):
    create, channels = NECKS[name]
    neck = Unpacked(randomise(create())).to(device, memory_format=format)
    # The norms get their statistics from larger maps: they need more than one pixel.
    usual, maps = ([
        x.to(device, memory_format=format)
        for x in backbone_maps(channels, *sides, batch=count)
    ] for sides, count in (((13, 18), 2), (size, batch)))
    return settle_norms(neck, *usual), maps


def neck_formula(neck, *maps):
    return layer_formulas.fpt(neck.neck, maps)


def make_backbone(name, device, size=(65, 97), batch=2,
                  format=torch.contiguous_format):
    backbone = BACKBONES[name]().to(device, memory_format=format)
    # Every block contributes, but less than its shortcut: errors grow quickly in a
    # deep network with random weights.
    for parameter in backbone.parameters():
        if not parameter.any():
            nn.init.constant_(parameter, 0.2)
    usual, image = (
        torch.randn(count, 3, *sides).to(device, memory_format=format)
        for sides, count in (((65, 97), 2), (size, batch)))
    return settle_norms(backbone, usual), [image]


def backbone_formula(backbone, image):
    """Compute the lambda layers by their formula, convolutions as they are."""
    for module in backbone.modules():
        if isinstance(module, LambdaLayer):
            module.forward = partial(layer_formulas.lambda_layer, module)
    return backbone(image)


# ----------------------------------------------------------------------- necks


@pytest.mark.parametrize('name', NECKS)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_neck(device, precision, name):
    neck, maps = make_neck(name, device)
    want = Trained.by_formula(neck_formula, double(neck), maps)
    agree(Trained(neck, maps, precision), want, TOLERANCES[precision])


@pytest.mark.parametrize('name', ['bottom up', 'ufp'])
@pytest.mark.parametrize('options', [
    *(dict(size=size, batch=1) for size in ((1, 1), (9, 1), (16, 16))),
    dict(format=torch.channels_last)], ids=str)
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_neck_of_any_size_and_format(device, precision, options, name):
    neck, maps = make_neck(name, device, **options)
    want = Trained.by_formula(neck_formula, double(neck), maps)
    got = Trained(neck, maps, precision)
    agree(got, want, TOLERANCES[precision])
    if 'format' in options and precision == 'float32':
        assert all(x.is_contiguous(memory_format=torch.channels_last)
                   for x in got.outs)


@pytest.mark.parametrize('name', ['bottom up', 'ufp'])
def test_neck_starts_as_its_pyramid(device, name):
    create, channels = NECKS[name]
    neck = create().to(device).eval()
    maps = [x.to(device) for x in backbone_maps(channels, 13, 18)]
    for got, want in zip(neck(maps), neck.pyramid(maps)):
        assert torch.equal(got, want)


def test_compiled_neck(device):
    neck, maps = make_neck('two levels', device)
    compiled = torch.compile(neck, fullgraph=True, backend='aot_eager')
    got = Trained(neck, maps, formula=lambda _, *maps: compiled(*maps))
    agree(got, Trained(neck, maps), TOLERANCES['float32'])


def test_compiled_by_inductor(device):
    """The default backend of torch.compile."""
    needed = [find_spec('triton'), shutil.which('gcc') or shutil.which('cc'),
              (Path(sysconfig.get_path('include')) / 'Python.h').exists()]
    if device.type != 'cuda' or not all(needed):
        pytest.skip('inductor needs CUDA, triton, a C compiler and Python.h')
    layer = randomise(SelfTransformer(12, 8)).to(device)
    maps = [torch.randn(2, 12, 7, 9, device=device)]
    compiled = torch.compile(layer, fullgraph=True)
    got = Trained(layer, maps, formula=lambda _, x: compiled(x))
    agree(got, Trained(layer, maps), TOLERANCES['float32'])


# ------------------------------------------------------------------- backbones


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_backbone(device, precision, name):
    skip_slow(device, precision)
    backbone, image = make_backbone(name, device)
    want = Trained.by_formula(backbone_formula, double(backbone), image)
    agree(Trained(backbone, image, precision), want, DEEP[precision])


@pytest.mark.parametrize('options', [
    dict(size=(1, 1), batch=1), dict(size=(33, 1), batch=1),
    dict(format=torch.channels_last)], ids=str)
def test_backbone_of_small_images_and_channels_last(device, options):
    backbone, image = make_backbone('timm', device, **options)
    want = Trained.by_formula(backbone_formula, double(backbone), image)
    agree(Trained(backbone, image, 'float32'), want, DEEP['float32'])


@pytest.mark.parametrize('make, name', [
    *((make_neck, name) for name in NECKS),
    *((make_backbone, name) for name in BACKBONES)])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_nothing_waits_for_the_device(device, no_sync, precision, make, name):
    network, inputs = make(name, device)
    Trained(network, inputs, precision)
    with no_sync():
        Trained(network, inputs, precision)


# -------------------------------------------------------------------- training


class Segmentor(nn.Module):
    """LambdaResNet, FPT over a bottom-up pyramid, and a 1x1 convolution."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.backbone = LambdaResNet('26t', norm_eval=False)
        self.neck = FPT([256, 512, 1024, 2048], 32, num_outs=4,
                        pyramid=dict(type='BottomUpPyramid'))
        self.head = nn.Conv2d(32, num_classes, 1)

    def forward(self, image):
        return [self.head(x) for x in self.neck(self.backbone(image))]


@pytest.mark.parametrize('precision', PRECISIONS)
def test_two_steps_of_training(device, precision):
    """Each loss is smaller than the one before."""
    skip_slow(device, precision)
    model = Segmentor().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(
        device.type, init_scale=2.**10, enabled=precision == 'float16')
    image = torch.randn(4, 3, 64, 96, device=device)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast(
                device.type,
                None if precision == 'float32' else getattr(torch, precision),
                enabled=precision != 'float32'):
            outs = model(image)
        loss = sum(
            nn.functional.cross_entropy(
                x.float(), torch.full_like(x[:, 0], 2, dtype=torch.long))
            for x in outs)
        losses.append(loss.item())
        if step == 2:
            break
        scaler.scale(loss).backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert not missing
        scaler.unscale_(optimizer)
        assert all(p.grad.isfinite().all() for p in model.parameters())
        if step == 1:  # the zero convolutions have moved
            unmoved = [n for n, p in model.named_parameters()
                       if not p.grad.any()]
            assert not unmoved
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.tensor(losses).isfinite())
    assert losses[2] < losses[1] < losses[0]
