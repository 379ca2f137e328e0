"""Convolutions fused with norms, by mmcv's fuse_conv_bn and by mmengine."""

import copy

import pytest
import torch
from helpers.base import backbone_maps
from helpers.oracles import relative_error
from mmcv.cnn import fuse_conv_bn
from mmengine.model import efficient_conv_bn_eval
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fpt_plugin import LambdaLayer
from fpt_plugin.necks.fusion import ResidualFusion
from fpt_plugin.openmmlab.conv_bn_eval import switch_necks_by_module

BN = dict(type='BN')
LAMBDA = dict(type='LambdaLayer', in_channels=16, context_size=5)
NECK = dict(in_channels=[8, 16, 24], out_channels=16, num_outs=4, norm_cfg=BN)
SINGLE = {
    'layer': LAMBDA,
    'plugin': dict(LAMBDA, residual=True, intra_depth=2, content_bias=True),
}
BACKBONES = {
    **{f'lambda {depth}': dict(type='LambdaResNet', depth=depth)
       for depth in (50, '26t', '26rpt', '50ts', 'd-li14-50')},
    'dilated': dict(type='LambdaResNet', depth=50, strides=(1, 2, 1, 1),
                    dilations=(1, 1, 2, 4), se=True),
    'lambda alone': dict(type='LambdaResNet', depth=50, num_stages=2,
                         out_indices=(0, 1), lambda_blocks='all',
                         lambda_layer=dict(num_heads=8, intra_depth=2)),
    'grafted': dict(type='mmdet.ResNet', depth=50, plugins=[dict(
        cfg=dict(type='LambdaLayer', residual=True, context_size=5),
        stages=(False, False, True, True), position='after_conv2')]),
}
NECKS = {
    'FPT': dict(NECK, type='FPT', fusion_norm_cfg=BN),
    'concat': dict(NECK, type='FPT', fusion='concat', fusion_norm_cfg=BN),
    'local': dict(NECK, type='FPT', pyramid=dict(type='BottomUpPyramid'),
                  fusion_norm_cfg=BN, grounding_transformer=dict(
                      type='LocalGroundingTransformer')),
    'rendering': dict(NECK, type='RenderingTransformerNeck'),
    'bottom-up': dict(NECK, type='BottomUpPyramid', add_extra_convs=True,
                      act_cfg=dict(type='ReLU')),
    'UFP': dict(type='UFP', in_channels=[24], out_channels=16),
}


def build(cfg):
    """Build a module; give its norms and gates values as after training."""
    module = MODELS.build(copy.deepcopy(cfg))
    module.eval()  # returns None in mmdet and mmseg
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
        elif isinstance(part, LambdaLayer) and part.residual:
            nn.init.normal_(part.gate)
        elif isinstance(part, ResidualFusion):
            nn.init.normal_(part.out_conv.weight, 0, 0.1)
    return module


def inputs_of(name, dtype):
    torch.manual_seed(1)
    if name in SINGLE:
        return torch.randn(2, 16, 9, 7, dtype=dtype)
    if name in BACKBONES:
        return torch.randn(1, 3, 64, 47, dtype=dtype)
    channels = [24] if name == 'UFP' else NECK['in_channels']
    return backbone_maps(channels, 16, 23, dtype=dtype)


def listed(outs):
    return list(outs) if isinstance(outs, (list, tuple)) else [outs]


def error(wanted, given):
    return max(map(relative_error, given, wanted))


@pytest.mark.parametrize('name', [*SINGLE, *BACKBONES, *NECKS])
def test_fuse_conv_bn_keeps_the_outputs(name):
    module = build({**SINGLE, **BACKBONES, **NECKS}[name])
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        module, inputs = module.to(dtype), inputs_of(name, dtype)
        fused = fuse_conv_bn(copy.deepcopy(module))
        with torch.no_grad():
            assert error(listed(module(inputs)), listed(fused(inputs))) < limit
    if name not in SINGLE:
        norms = [sum(isinstance(part, _BatchNorm) for part in net.modules())
                 for net in (module, fused)]
        assert norms[1] < norms[0]


def test_parameters_keep_their_order():
    """Optimizers resume their state by this order."""
    layer = LambdaLayer(16, content_bias=True, residual=True)
    assert [name for name, _ in layer.named_parameters()] == [
        'embedding', 'content_bias', 'gate', 'qkv.weight', 'norm_q.weight',
        'norm_q.bias', 'norm_v.weight', 'norm_v.bias', 'norm_out.weight',
        'norm_out.bias']
    # mmengine's optimizer constructors iterate over the children.
    assert [name for name, _ in layer.named_children()] == [
        'qkv', 'norm_q', 'norm_v', 'norm_out']


def turn_on(module):
    """Apply mmengine's way to a module inside a model; return the model."""
    model = nn.ModuleDict(dict(part=module))
    efficient_conv_bn_eval.turn_on_efficient_conv_bn_eval(model, 'part')
    return model


@pytest.mark.parametrize(
    'name', ['lambda 50', 'lambda 26t', 'dilated', 'grafted', *NECKS])
def test_mmengines_way_keeps_outputs_and_gradients(name):
    """The norms are in evaluation mode."""
    module = build({**BACKBONES, **NECKS}[name]).double()
    inputs = inputs_of(name, torch.float64)

    def results():
        module.zero_grad()
        outs = module(inputs)
        sum(out.square().mean() for out in outs).backward()
        return [*outs, *(p.grad for p in module.parameters())]

    wanted = results()
    turn_on(module)
    assert error(wanted, results()) < 1e-9


def test_necks_need_the_mend(monkeypatch):
    name = 'turn_on_efficient_conv_bn_eval_for_single_model'
    mended = getattr(efficient_conv_bn_eval, name)
    monkeypatch.setattr(efficient_conv_bn_eval, name, mended.__wrapped__)
    neck = build(NECKS['FPT'])
    with pytest.raises(TypeError, match='Proxy'):
        turn_on(neck)
    for _ in range(2):  # the second time changes nothing
        switch_necks_by_module()
        once = getattr(efficient_conv_bn_eval, name)
        assert not hasattr(once.__wrapped__, '__wrapped__')
    turn_on(neck)
    assert neck.pyramid.lateral_convs[0].efficient_conv_bn_eval_forward


def test_norms_in_training_mode_still_learn():
    module = build(NECKS['bottom-up'])
    turn_on(module)
    norm = module.lateral_convs[0].bn
    before = norm.running_mean.clone()
    module.train()(inputs_of('bottom-up', torch.float32))
    assert not torch.equal(norm.running_mean, before)
