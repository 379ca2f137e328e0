"""Pyramids of the papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from base import BaseNeckTester, backbone_maps

from fpt_plugin import BottomUpPyramid

CHANNELS = [8, 16, 24, 32]


class TestBottomUpPyramid(BaseNeckTester):
    cfg = dict(type='BottomUpPyramid', in_channels=CHANNELS, out_channels=16)


class TestBottomUpPyramidWithExtraConvs(BaseNeckTester):
    cfg = dict(
        type='BottomUpPyramid',
        in_channels=CHANNELS,
        out_channels=16,
        num_outs=6,
        add_extra_convs='on_input',
        relu_before_extra_convs=True)
    num_outs = 6

    @pytest.mark.parametrize('batch', [1, 2])
    def test_any_size_trains(self, batch):
        super().test_any_size_trains((33, 17), batch)


def inputs():
    return backbone_maps(CHANNELS)


def test_laterals_and_nothing_else():
    neck = BottomUpPyramid(CHANNELS, 16, num_outs=5)
    maps = inputs()
    outs = neck(maps)
    for conv, x, out in zip(neck.lateral_convs, maps, outs):
        assert conv.conv.kernel_size == (1, 1)
        assert torch.equal(out, F.conv2d(x, conv.conv.weight, conv.conv.bias))
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])
    assert sum(p.numel() for p in neck.parameters()) == sum(
        c * 16 + 16 for c in CHANNELS)


@pytest.mark.parametrize('source', [True, 'on_input', 'on_lateral',
                                    'on_output'])
def test_extra_levels(source):
    neck = BottomUpPyramid(CHANNELS, 16, num_outs=6, add_extra_convs=source)
    maps = inputs()
    outs = neck(maps)
    first = neck.extra_convs[0].conv
    before = maps[-1] if source in (True, 'on_input') else outs[3]
    torch.testing.assert_close(
        outs[4], F.conv2d(before, first.weight, first.bias, 2, 1))
    assert [tuple(x.shape[2:]) for x in outs[3:]] == [(4, 6), (2, 3), (1, 2)]


def test_levels_and_norms():
    neck = BottomUpPyramid(
        CHANNELS,
        16,
        start_level=1,
        end_level=2,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'))
    outs = neck(inputs())
    assert [x.shape[3] for x in outs] == [21, 11]
    assert all((x >= 0).all() for x in outs)
    bare = BottomUpPyramid(
        CHANNELS, 16, norm_cfg=dict(type='BN'), no_norm_on_lateral=True)
    assert not bare.lateral_convs[0].with_norm


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(in_channels=8), TypeError, 'in_channels'),
    (dict(num_outs=3), ValueError, 'num_outs must be at least 4'),
    (dict(start_level=3, end_level=2), ValueError, 'start_level=3'),
    (dict(end_level=4), ValueError, 'end_level=4'),
    (dict(add_extra_convs='top'), ValueError, "add_extra_convs.*'top'"),
    (dict(out_channels=0), ValueError, 'out_channels'),
])
def test_bad_arguments(kwargs, error, words):
    args = dict(in_channels=CHANNELS, out_channels=16)
    with pytest.raises(error, match=words):
        BottomUpPyramid(**{**args, **kwargs})


def test_bad_inputs():
    with pytest.raises(ValueError, match='expects 4 maps, got 3'):
        BottomUpPyramid(CHANNELS, 16)(inputs()[:3])
