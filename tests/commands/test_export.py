"""Backbone and neck as ONNX and as programs of torch.export."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers.shipped_configs import CONFIGS
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from fpt_plugin import FPT, LambdaLayer
from fpt_plugin.commands.export import graph as module
from fpt_plugin.commands.export.graph import Features, export, fix_strides

ROOT = Path(__file__).parents[2]


def detector(backbone, **neck):
    """Return the parts of a detector that are exported."""
    return nn.Sequential(OrderedDict(backbone=backbone, **neck))


class Tiny(BaseModule):
    """A backbone with a lambda layer and two maps, of strides 8 and 16."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.attend = LambdaLayer(8, num_heads=2, query_depth=4, context_size=5)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x):
        x = self.attend(self.stem(x))
        return x, self.down(x)


def perturbed(model, seed=0):
    """Change all weights, because zeros hide the branches behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny(**neck):
    return perturbed(detector(Tiny(), neck=FPT(**dict(dict(
        in_channels=[8, 12], out_channels=8,
        pyramid=dict(type='BottomUpPyramid')), **neck))))


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_one_file_takes_several_sizes(suffix, tmp_path):
    out = tmp_path / f'model{suffix}'
    result = export(
        tiny(), out, (64, 96), divisor=16, checks=[(96, 64), (32, 160)])
    assert result.out == out and out.stat().st_size > 0
    assert result.opset == (18 if suffix == '.onnx' else None)
    assert result.outputs == (8, 8)
    assert list(result.differences) == [(64, 96), (96, 64), (32, 160)]
    assert max(result.differences.values()) <= 1e-5
    if suffix == '.onnx':
        import onnx
        graph = onnx.load(out)
        assert graph.opset_import[0].version == 18
        dims = graph.graph.input[0].type.tensor_type.shape.dim
        assert dims[0].dim_value == 1 and dims[1].dim_value == 3
        assert all(dim.dim_param for dim in dims[2:])
        # only ONNX's own operators
        assert {node.domain for node in graph.graph.node} <= {''}


@pytest.mark.parametrize('suffix, neck', [
    *(('.pt2', neck) for neck in (
        dict(preset='light'), dict(preset='full'), dict(preset='paper'),
        dict(first_level=1), dict(first_level=dict(grounding_transformer=1)))),
    ('.onnx', dict(  # the graph computes the centres of the windows
        in_channels=[8, 12], num_outs=2, num_levels=2, key_strides=2,
        grounding_transformer=dict(type='LocalGroundingTransformer')))])
def test_kinds_of_necks(suffix, neck, tmp_path):
    result = export(tiny(**neck), tmp_path / f'a{suffix}', (64, 96), divisor=16,
                    checks=[(96, 64)])
    assert max(result.differences.values()) <= 1e-5


def test_the_model_is_not_changed(tmp_path):
    model = tiny().train()
    image = torch.randn(1, 3, 32, 32)
    model.eval()
    before = model.neck(model.backbone(image))
    model.train()
    export(model, tmp_path / 'a.pt2', (32, 32), divisor=None)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    model.eval()
    for a, b in zip(model.neck(model.backbone(image)), before):
        assert torch.equal(a, b)


def test_strides_are_fixed_only_in_a_copy():
    model = tiny()
    features = Features(model)
    keys = set(features.state_dict())
    fix_strides(features, torch.randn(1, 3, 64, 96))
    neck = features.parts[1]
    render = neck.rendering_transformers['1_0']
    assert neck.fixed_strides == (2, 1) and render.fixed_stride == 2
    assert render.stride(80, 8) == 2
    fix_strides(features, torch.randn(1, 3, 8, 8))  # maps of one pixel
    assert neck.fixed_strides == (1, 1) and render.fixed_stride == 1
    assert set(features.state_dict()) == keys
    assert not any(m._forward_pre_hooks for m in features.modules())
    assert model.neck.fixed_strides is None
    assert model.neck.rendering_transformers['1_0'].stride(80, 8) == 10


RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=16)
D8 = dict(
    type='mmseg.MobileNetV2', strides=(1, 2, 2, 1, 1, 1, 1),
    dilations=(1, 1, 1, 2, 2, 4, 4), out_indices=(1, 2, 4, 6),
    norm_cfg=dict(type='SyncBN'))
NETWORKS = {
    'ResNet, FPT over FPN': (RESNET, dict(
        in_channels=[16, 32, 64, 128], num_outs=5)),
    'LambdaResNet, FPT over FPN': (dict(type='LambdaResNet', depth='26t'), dict(
        in_channels=[256, 512, 1024, 2048], num_outs=5)),
    'MobileNetV2-d8, UFP with LGT': (D8, dict(
        in_channels=[24, 32, 96, 320], num_outs=4, pyramid=dict(type='UFP'),
        grounding_transformer=dict(type='LocalGroundingTransformer'))),
}


@pytest.mark.slow
@pytest.mark.parametrize('name, suffix', [
    *((name, '.onnx') for name in NETWORKS),
    ('MobileNetV2-d8, UFP with LGT', '.pt2')])
def test_networks(name, suffix, tmp_path):
    backbone, neck = NETWORKS[name]
    model = perturbed(detector(
        MODELS.build(backbone),
        neck=MODELS.build(dict(neck, type='FPT', out_channels=32))))
    result = export(model, tmp_path / f'a{suffix}', (128, 192),
                    checks=[(192, 128), (160, 256)])
    assert len(result.differences) == 3
    assert max(result.differences.values()) <= 1e-5


class DataDependent(BaseModule):
    """A backbone whose graph depends on the values in the image."""

    def forward(self, x):
        return (x * 2 if x.sum() > 0 else x, )


def carafe():
    return MODELS.build(dict(
        type='mmdet.FPN_CARAFE', in_channels=[8, 12], out_channels=8, num_outs=2))


@pytest.mark.parametrize('make, divisor, words', [
    (lambda: detector(DataDependent()), 32,
     'DataDependent cannot be exported: .*use another backbone'),
    # torch treats sides of 1 as constants.
    (lambda: tiny(num_outs=4, num_levels=2), 16,
     '(constant|Guard) .*larger --shape'),
    (lambda: detector(Tiny(), neck=carafe()), 32, 'compiled operators .*CARAFE'),
])
def test_models_that_cannot_be_exported(make, divisor, words, tmp_path):
    with pytest.raises(RuntimeError, match=words):
        export(make(), tmp_path / 'a.pt2', (64, 64), divisor=divisor)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    run = module._run
    monkeypatch.setattr(module, '_run', lambda *args: [x + 1
                                                       for x in run(*args)])
    with pytest.raises(RuntimeError, match='differs from torch by'):
        export(tiny(), tmp_path / 'a.pt2', (32, 32), divisor=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('options, error, words', [
    (dict(out='a.pt'), ValueError, 'out must end in .onnx or .pt2, got'),
    (dict(shape=(65, 64)), ValueError, r'shape must be multiples .*\(65, 64\)'),
    (dict(shape=(32, 64)), ValueError, 'from 64 to'),
    (dict(shape=(64, )), ValueError, 'shape must be height and width'),
    (dict(shape=(64, 64.)), TypeError, 'shape must be an int, got 64.0'),
    (dict(checks=[(64, 70)]), ValueError, 'checks must be multiples'),
    (dict(divisor=None, checks=[(64, 96)]), ValueError, 'checks must be the'),
    (dict(opset=11), ValueError, 'opset must be at least 18, got 11'),
])
def test_bad_arguments(options, error, words, tmp_path):
    options = dict(dict(out='a.onnx', shape=(64, 64)), **options)
    out = tmp_path / options.pop('out')
    with pytest.raises(error, match=words):
        export(detector(Tiny()), out, **options)
    assert not list(tmp_path.iterdir())


def test_bad_environments(tmp_path, monkeypatch):
    out = tmp_path / 'a.pt2'
    with monkeypatch.context() as patch:
        patch.setenv('FPT_ATTENTION', 'chunked')
        with pytest.raises(ValueError, match="FPT_ATTENTION must.*'chunked'"):
            export(detector(Tiny()), out, (64, 64))
    out.write_text('mine')
    with pytest.raises(FileExistsError, match='--force'):
        export(detector(Tiny()), out, (64, 64))
    assert out.read_text() == 'mine'
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match='pip install onnxscript'):
        export(detector(Tiny()), tmp_path / 'a.onnx', (64, 64))


@pytest.mark.slow
def test_command(tmp_path):
    config = CONFIGS / 'fpt/retinanet_r50_fpt_1x_coco.py'
    command = [
        sys.executable, 'tools/export.py', str(config), 'none',
        str(tmp_path / 'a.onnx'), '--shape', '128', '192', '--cfg-options',
        'model.backbone.depth=18', 'model.backbone.base_channels=16',
        'model.backbone.init_cfg=None', 'model.neck.in_channels=[16,32,64,128]',
        'model.neck.out_channels=32', 'model.bbox_head.in_channels=32'
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'ONNX opset 18' in done.stdout
    assert done.stdout.count('differs from torch by') == 2
