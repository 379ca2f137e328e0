"""Swin of both libraries on visible tokens, compared with its own forward pass."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from helpers.masked_swins import LIBRARIES, green_mim, hide_keys, swin
from mmengine.registry import MODELS

from fpt_plugin import GreenMIM
from fpt_plugin.pretraining.swin import build_swin, stride_of, visible_features
from fpt_plugin.pretraining.units import join_units, split_units

POSITIONS = dict(use_abs_pos_embed=True)


def images(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def backbone(library: str, stages: int = 4, **settings) -> torch.nn.Module:
    settings = dict(
        dict(depths=(2, ) * stages, num_heads=(1, 2, 2, 4)[:stages]), **settings)
    return green_mim(swin(library, **settings)).backbone.double()


def dense(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run the library's forward pass; return its last map per unit (B, N, k)."""
    out, = model(x)
    side = 32 // stride_of(model)
    return split_units(out, side).permute(0, 1, 3, 4, 2).flatten(2)


@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('size, settings', [
    ((64, 64), dict()),
    ((128, 64), dict(patch_norm=False)),
    ((64, 128), dict(POSITIONS, pretrain_img_size=(64, 128))),
    ((96, 96), dict(window_size=3, depths=(1, 2, 3, 1), qk_scale=0.7)),
    ((224, 224), dict(window_size=7, embed_dims=24, num_heads=(3, 6, 6, 12))),
])
def test_all_visible_is_the_librarys_forward(library, size, settings):
    model = backbone(library, **settings)
    x = images(*size)
    grid = tuple(side // 32 for side in size)
    out = visible_features(
        model, split_units(x, 32), torch.arange(grid[0] * grid[1]), grid)
    torch.testing.assert_close(out, dense(model, x), rtol=0, atol=1e-10)


# Also sides that are no multiples of windows, with the library's padding hidden.
@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('stages', [1, 2, 3, 4])
@pytest.mark.parametrize('size, window, settings', [
    ((128, 160), 2, dict()),
    ((96, 160), 5, dict(POSITIONS, pretrain_img_size=(96, 160))),
])
def test_masked_is_attention_without_hidden_keys(library, stages, size, window,
                                                 settings):
    model = backbone(library, stages, window_size=window, **settings)
    full = deepcopy(model)
    x = images(*size)
    grid = tuple(side // 32 for side in size)
    count = grid[0] * grid[1]
    places = torch.randperm(count)[:count // 3].sort().values
    visible = torch.zeros(count, dtype=torch.bool)
    visible[places] = True
    hide_keys(full, visible.view(grid))
    units = split_units(x, 32)
    out = visible_features(model, units[:, places], places, grid)
    reference = dense(full, x)[:, places]
    torch.testing.assert_close(out, reference, rtol=0, atol=1e-10)

    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (reference * weights).sum().backward()
    found, expected = (dict(m.named_parameters()) for m in (model, full))
    for name, parameter in expected.items():
        torch.testing.assert_close(
            found[name].grad, parameter.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_with_cp_gives_the_same_gradients():
    plain = backbone('mmdet')
    again = deepcopy(plain)
    for stage in again.stages:
        for block in stage.blocks:
            block.with_cp = True
    x, places = images(96, 96), torch.tensor([0, 4, 5])
    units = split_units(x, 32)[:, places]
    for model in (plain, again):
        visible_features(model, units, places, (3, 3)).square().sum().backward()
    torch.testing.assert_close(*([p.grad for p in model.parameters()]
                                 for model in (plain, again)))


def test_dropout_and_drop_path_only_in_training():
    model = backbone('mmseg', drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5)
    units, places = split_units(images(64, 64), 32), torch.arange(4)
    assert not torch.equal(*(visible_features(model, units, places, (2, 2))
                             for _ in range(2)))
    model.eval()
    out = visible_features(model, units, places, (2, 2))
    torch.testing.assert_close(
        out, dense(model, join_units(units, 2)), rtol=0, atol=1e-10)


def test_units_can_be_joined():
    x = images(64, 96)
    assert torch.equal(join_units(split_units(x, 32), 3), x)
    assert torch.equal(split_units(x, 32)[:, 4], x[..., 32:, 32:64])


@pytest.mark.parametrize('settings, error, text', [
    (dict(type='mmdet.ResNet', depth=18), ValueError, 'got mmdet.ResNet'),
    (dict(type='mmdet.HourglassNet'), ValueError, 'got mmdet.HourglassNet'),
    (dict(type='Nothing'), ValueError, 'got Nothing'),
    (dict(), ValueError, 'got None'),
    (dict(swin(), out_indices=(0, 1, 2, 3)), ValueError, 'out_indices'),
    (dict(swin(), strides=(4, 2, 2, 1)), ValueError, 'strides'),
    ('mmdet.SwinTransformer', TypeError, 'backbone'),
])
def test_bad_backbones(settings, error, text):
    with pytest.raises(error, match=text):
        GreenMIM(settings)


@pytest.mark.parametrize('size', [224, (96, 64)])
def test_positions_of_another_size(size):
    """Also with as many positions, but in other rows and columns."""
    positions = dict(POSITIONS, pretrain_img_size=size)
    model = GreenMIM(swin(**positions), decoder=dict(embed_dims=16, num_heads=2))
    with pytest.raises(ValueError, match=r'pretrain_img_size .* \(64, 96\), '):
        model(torch.rand(1, 3, 64, 96), mode='loss')


def test_a_subclass_of_the_backbone():

    @MODELS.register_module(name='MySwin', force=True)
    class MySwin(MODELS.get('mmdet.SwinTransformer')):
        pass

    try:
        assert stride_of(build_swin(dict(swin(), type='MySwin'))) == 32
    finally:
        MODELS.module_dict.pop('MySwin')
