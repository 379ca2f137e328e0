"""BottomUpPyramid and UFP."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.base import BaseNeckTester, BaseWrapperTester, backbone_maps

from fpt_plugin import FPT, UFP, BottomUpPyramid

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
    neck = BottomUpPyramid(CHANNELS, 16, start_level=1, end_level=2,
                           norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
    outs = neck(inputs())
    assert [x.shape[3] for x in outs] == [21, 11]
    assert all((x >= 0).all() for x in outs)
    bare = BottomUpPyramid(
        CHANNELS, 16, norm_cfg=dict(type='BN'), no_norm_on_lateral=True)
    assert not bare.lateral_convs[0].with_norm


@pytest.mark.parametrize('pyramid, kwargs, error, words', [
    (BottomUpPyramid, dict(in_channels=8), TypeError, 'in_channels'),
    (BottomUpPyramid, dict(num_outs=3), ValueError, 'num_outs must be at least 4'),
    (BottomUpPyramid, dict(start_level=3, end_level=2), ValueError, 'start_level=3'),
    (BottomUpPyramid, dict(end_level=4), ValueError, 'end_level=4'),
    (BottomUpPyramid, dict(add_extra_convs='top'), ValueError, "_convs must .*'top'"),
    (BottomUpPyramid, dict(out_channels=0), ValueError, 'out_channels'),
    (UFP, dict(in_channels=32), TypeError, 'in_channels must be a list'),
    (UFP, dict(out_channels=0), ValueError, 'out_channels must be at least 1'),
    (UFP, dict(num_outs=5), ValueError, 'num_outs must be the number of .* got 5'),
    (UFP, dict(kernel_sizes=(1, 4)), ValueError, r'kernel_sizes must be odd.*4'),
    (UFP, dict(kernel_sizes=7), TypeError, 'kernel_sizes must be a list'),
])
def test_bad_arguments(pyramid, kwargs, error, words):
    args = dict(in_channels=CHANNELS, out_channels=16)
    with pytest.raises(error, match=words):
        pyramid(**{**args, **kwargs})


@pytest.mark.parametrize('pyramid', [BottomUpPyramid, UFP])
def test_a_missing_map(pyramid):
    with pytest.raises(ValueError, match='expects 4 maps, got 3'):
        pyramid(CHANNELS, 16)(inputs()[:3])


def dilated_maps(height=11, width=14, batch=2, **kwargs):
    """Backbone maps of one size, as those of an output stride of 8."""
    return [torch.randn(batch, c, height, width, **kwargs) for c in CHANNELS]


class DilatedMaps:

    def inputs(self, *args, **kwargs):
        return dilated_maps(*args, **kwargs)

    def test_any_size_trains(self):
        """Only the last map is read."""
        for size in ((11, 14), (5, 1), (1, 1)):
            inputs = self.inputs(*size, batch=1, requires_grad=True)
            outs = self.build()(inputs)
            assert [x.shape for x in outs] == 4 * [(1, 16, *size)]
            self.loss(outs).backward()
            assert inputs[-1].grad.any() and inputs[0].grad is None


class TestUFP(DilatedMaps, BaseNeckTester):
    cfg = dict(type='UFP', in_channels=CHANNELS, out_channels=16,
               kernel_sizes=(1, 3, 7, 9), norm_cfg=dict(type='GN', num_groups=4))


class TestFPTOverUFP(DilatedMaps, BaseWrapperTester):
    cfg = dict(
        type='FPT', in_channels=CHANNELS, out_channels=16, num_outs=4,
        pyramid=dict(type='UFP', kernel_sizes=(1, 3, 7, 9)),
        grounding_transformer=dict(
            type='LocalGroundingTransformer', window=5),
        norm_cfg=dict(type='GN', num_groups=4))

    def test_all_maps_are_transformed_exactly(self):
        """With maps of one size no keys are pooled."""
        neck = self.build()
        assert neck.num_levels == 4
        assert neck.pooling_strides(neck.pyramid(self.inputs())) == (1, 1, 1, 1)
        assert len(neck.self_transformers) == 4
        assert len(neck.grounding_transformers) == 6
        assert len(neck.rendering_transformers) == 6


def test_ufp_is_gcn_over_a_reduction():
    neck = UFP(CHANNELS, 16).eval()
    maps = dilated_maps(40, 35)
    outs = neck(maps)
    conv, norm = neck.reduce.conv, neck.reduce.norm
    x = norm(F.conv2d(maps[-1], conv.weight, conv.bias)).relu()
    first = neck.branches[0].paths[0]
    torch.testing.assert_close(outs[0], F.conv2d(x, first.weight, first.bias))
    for k, branch, out in zip((7, 15, 31), neck.branches[1:], outs[1:]):
        expected = 0
        for path, sizes in zip(branch.paths, ([(k, 1), (1, k)],
                                              [(1, k), (k, 1)])):
            y = x
            for conv, size in zip(path, sizes):
                assert conv.kernel_size == size
                y = F.conv2d(y, conv.weight, conv.bias,
                             padding=[side // 2 for side in size])
            expected = expected + y
        torch.testing.assert_close(out, expected)
    # the reduction and its norm; 1 + 4 * (7 + 15 + 31) taps, biases
    assert sum(p.numel() for p in neck.parameters()) == (
        32 * 16 + 2 * 16 + 16 * 16 * (1 + 4 * 53) + 16 * (1 + 3 * 4))


TALL_KERNELS = """
import torch
from fpt_plugin import UFP
for width in (32, 256):
    neck = UFP([width], width, norm_cfg=None)
    for rows in (10, 12, 14, 16):
        maps = neck([torch.randn(1, width, rows, 13)])
        sum(x.sum() for x in maps).backward()
print('whole')
"""


def test_tall_kernels_train_on_small_maps():
    """In another process, because oneDNN may write beyond its memory."""
    run = subprocess.run([sys.executable, '-c', TALL_KERNELS],
                         capture_output=True, text=True)
    assert run.stdout == 'whole\n', (run.returncode, run.stderr[-500:])


def test_ufp_needs_a_dilated_backbone():
    with pytest.raises(ValueError, match=r'dilated backbone.*\(4, 6\).*'
                       r'strides=\(1, 2, 1, 1\)'):
        UFP(CHANNELS, 16)(inputs())
    with pytest.raises(ValueError, match='dilated backbone'):
        FPT(CHANNELS, 16, pyramid=dict(type='UFP'))(inputs())
