"""Every neck and backbone under autocast, at odd sizes and at one pixel.

The layers are in tests/layers/test_precision.py.
"""

from __future__ import annotations

import copy
from statistics import median

import pytest
import torch
from helpers.base import backbone_maps
from helpers.oracles import randomise, relative_error, settle_norms
from mmengine.registry import MODELS

import fpt_plugin

CHANNELS = [8, 16, 24, 32]
SIZES = [(13, 22), (7, 1), (1, 1)]
NECK = dict(in_channels=CHANNELS, out_channels=16)
OVER_FPN = dict(NECK, num_outs=5, pyramid=dict(type='mmdet.FPN'))
GN = dict(type='GN', num_groups=2)


def pyramid(height, width):
    return backbone_maps(CHANNELS, height, width, batch=1)


def dilated(height, width):
    return [torch.randn(1, c, height, width) for c in CHANNELS]


def image(height, width):
    return torch.randn(1, 3, 4 * height - 3, 4 * width - 3)


# By 'TYPE, variant': the config and the function that makes the inputs.
CASES = {
    'FPT': (OVER_FPN, pyramid),
    'FPT, concat': (dict(
        OVER_FPN, fusion='concat', embed_channels=16, key_strides=1), pyramid),
    'FPT, norms': (dict(
        OVER_FPN, fusion_norm_cfg=GN, checkpoint_branches=True), pyramid),
    'FPT, concat and norms': (dict(
        OVER_FPN, fusion='concat', fusion_norm_cfg=GN), pyramid),
    'FPT, windows over UFP': (dict(
        NECK, pyramid=dict(type='UFP', norm_cfg=GN), fusion='concat', key_strides=1,
        grounding_transformer=dict(type='LocalGroundingTransformer', window=5)),
        dilated),
    'SelfTransformerNeck': (OVER_FPN, pyramid),
    'GroundingTransformerNeck': (OVER_FPN, pyramid),
    'RenderingTransformerNeck': (OVER_FPN, pyramid),
    'BottomUpPyramid': (dict(NECK, num_outs=5, add_extra_convs='on_output'), pyramid),
    'UFP': (dict(NECK, norm_cfg=GN), dilated),
    'LambdaResNet': (dict(depth='26t', zero_init_residual=False), image),
}


def build(name):
    """Build a module; draw every parameter, because zeros would hide branches."""
    module = MODELS.build(copy.deepcopy(dict(CASES[name][0], type=name.split(',')[0])))
    # A backbone with drawn norms is chaotic: roundings grow from block to block.
    return module if name == 'LambdaResNet' else randomise(module)


def test_every_neck_and_backbone_is_here():
    modules = {name for name in fpt_plugin.__all__ if name in MODELS.module_dict
               and MODELS.module_dict[name].__module__.split('.')[1] in (
                   'necks', 'backbones')}
    assert modules == {name.split(',')[0] for name in CASES}


def roundings(module, name, dtype, size):
    """Compute errors of the outputs and gradients in units of the type's eps.

    Returns:
        The error of the worst output, and of all gradients together.
    """
    inputs = CASES[name][1](*size)
    twin = copy.deepcopy(module).double()
    module.zero_grad()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
        outs = module(inputs)
        loss = sum(out.float().square().mean() for out in outs)
    # A gradient scaler keeps gradients in the range of float16.
    scale = 2.**-6 if (name, dtype) == ('LambdaResNet', torch.float16) else 1
    (scale * loss).backward()
    want = twin(inputs.double() if torch.is_tensor(inputs) else
                [x.double() for x in inputs])
    sum(out.square().mean() for out in want).backward()
    assert all(out.isfinite().all() for out in outs)
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    grads, want_grads = (
        torch.cat([p.grad.flatten().double() for p in m.parameters()])
        for m in (module, twin))
    eps = torch.finfo(dtype).eps
    return (max(map(relative_error, outs, want)) / eps,
            relative_error(grads / scale, want_grads) / eps)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] if name == 'LambdaResNet' else [])
    for name in CASES])
def test_outputs_and_gradients(name, dtype):
    module = settle_norms(build(name), CASES[name][1](*SIZES[0]))
    # Deep networks multiply roundings, and one sign before a ReLU makes a large
    # difference where a map is one pixel: take the median over three inputs.
    seeds = (1, 2, 3) if name == 'LambdaResNet' else (1, )
    for size in SIZES:

        def measured(dtype, size=size):
            found = []
            for seed in seeds:
                torch.manual_seed(seed)
                found.append(roundings(module, name, dtype, size))
            return [median(values) for values in zip(*found)]

        output, gradient = measured(dtype)
        limits = 3, 6
        if name == 'LambdaResNet':  # relative to its error in float32
            exact = measured(torch.float32)
            limits = [max(1, x) * most for x, most in zip(exact, limits)]
        assert output <= limits[0] and gradient <= limits[1], size
