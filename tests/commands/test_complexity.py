"""Counts by part, against formulas written down by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.base import sizes_of
from mmengine.config import Config
from rich.console import Console
from torch import nn

from fpt_plugin import FPT, LambdaLayer, functional
from fpt_plugin.commands.common import load_model
from fpt_plugin.commands.complexity import command as module
from fpt_plugin.commands.complexity import formulas
from fpt_plugin.commands.complexity.command import complexity, neck_complexity
from fpt_plugin.functional import budget, position_lambda
from fpt_plugin.layers import mixture

ROOT = Path(__file__).resolve().parents[2]
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
FLOAT = 4  # bytes


class Lambda(nn.Module):
    """A neck of one function of its maps."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, maps):
        return self.function(self, *maps)


def count(function, *shapes, batch=1, **children):
    """The part ``pyramid`` of a neck of one function."""
    result = neck_complexity(Lambda(function, **children), shapes, batch)
    assert result.complete, result.not_counted
    return result.part('pyramid')


def in_place(_, x):
    x = x[0, 0].clone()
    out = x.new_empty(6, 6)
    torch.mm(x, x.T, out=out)
    out.addmm_(x, x.T)
    torch.addmv(x[:, 0], x, x[0])
    return x[0] @ x[0] + x @ x[0]


def multihead(self, x):
    x = x.flatten(2).transpose(1, 2)
    return self.layer(x, x, x, need_weights=False)[0]


# A 4x4 map of 6 channels gives 3 heads of 4 queries and keys of 8 numbers.
def fused_attention(_, x):
    heads = x.reshape(1, 3, 4, 8)
    return F.scaled_dot_product_attention(heads, heads, heads[..., :5])


@pytest.mark.parametrize('macs, function, shape, children', [
    (8 * 5 * 6 * 3 * 9, lambda self, x: self.layer(x), (6, 9, 11),
     dict(layer=nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2))),
    (6 * 9 * 11 * 4 * 4, lambda self, x: self.layer(x), (6, 9, 11),
     dict(layer=nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2))),
    (6 * 9 * 11 * 5, lambda self, x: self.layer(x), (6, 9, 11),
     dict(layer=nn.Linear(11, 5))),
    (6 * 9 * 9 * 11, lambda self, x: x @ x.transpose(2, 3), (6, 9, 11), {}),
    (6 * 9 * 11, lambda self, x: torch.einsum('bchw,cw->bhc', x, x[0, :, 0]),
     (6, 9, 11), {}),
    (2 * 6 * 6 * 9 + 6 * 9 + 9 + 6 * 9, in_place, (1, 6, 9), {}),
    (3 * 4 * 4 * (8 + 5), fused_attention, (6, 4, 4), {}),
    (16 * (4 * 6 * 6 + 2 * 16 * 6), multihead, (6, 4, 4),
     dict(layer=nn.MultiheadAttention(6, 2, batch_first=True))),
    (0, lambda self, x: F.max_pool2d(F.interpolate(
        self.norm(x).relu().softmax(1) * x, scale_factor=2), 2), (6, 4, 4),
     dict(norm=nn.BatchNorm2d(6))),
])
def test_operators(macs, function, shape, children):
    assert count(function, shape, **children).macs == macs


def with_data(function):
    """What does not run on tensors without data."""

    def run(self, x, *maps):
        assert x.isfinite().all()
        return function(self, x, *maps)

    return run


def test_multihead_attention_is_not_fused_while_counted():
    layer = nn.MultiheadAttention(6, 2, batch_first=True)
    part = count(with_data(multihead), (6, 4, 4), layer=layer)
    assert part.macs == 16 * (4 * 6 * 6 + 2 * 16 * 6)


def test_batch_multiplies():
    layer = nn.Conv2d(3, 4, 3, padding=1)
    run = partial(count, lambda self, x: self.layer(x), (3, 8, 8), layer=layer)
    assert run(batch=3).macs == 3 * run().macs == 3 * 4 * 64 * 27


# ------------------------------------------------------------------- memory


def test_saved_for_backward():
    pixels = 64

    def run(function, **children):
        return count(function, (3, 8, 8), **children).saved_bytes

    conv = partial(nn.Conv2d, 3, 4, 3, padding=1)
    # The convolution's input and the ReLU's output; no weights.
    assert run(
        lambda self, x: self.conv(x).relu(),
        conv=conv()) == (3 + 4) * pixels * FLOAT
    # Two users of one map; a view of it.
    assert run(
        lambda self, x: self.one(x) + self.two(x.flip(0).flip(0)[:]),
        one=conv(),
        two=conv()) == 2 * 3 * pixels * FLOAT
    assert run(
        lambda self, x: self.one(x) + self.two(x.view(1, 3, 8, 8)),
        one=conv(),
        two=conv()) == 3 * pixels * FLOAT
    # Indices of a pooling are of 8 bytes, beside its input.
    assert run(lambda self, x: F.max_pool2d(x, 2)) == (
        3 * pixels * FLOAT + 3 * pixels // 4 * 8)


def test_saved_without_data_is_what_autograd_keeps(monkeypatch):
    neck = fpt(pyramid=dict(type='BottomUpPyramid'), in_channels=[8, 16, 24])
    shapes = shapes_of([8, 16, 24])
    maps = [torch.rand(2, *s, requires_grad=True) for s in shapes]
    constant = {p.data_ptr() for p in neck.parameters()}
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x  # kept alive: no address twice
        return x

    monkeypatch.setenv('FPT_ATTENTION', 'chunked')
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outs = neck.train()(maps)
    monkeypatch.delenv('FPT_ATTENTION')
    assert len(outs) == 3
    want = sum(x.untyped_storage().nbytes() for address, x in kept.items()
               if address not in constant)
    result = neck_complexity(neck, shapes, batch=2)
    assert result.total.saved_bytes == want
    assert not result.notes


def test_checkpointed_branches_save_less():
    plain, checkpointed = (
        neck_complexity(fpt(checkpoint_branches=on), MAPS)
        for on in (False, True))
    assert checkpointed.part('fpt').macs == plain.part('fpt').macs
    assert checkpointed.total.saved_bytes < 0.7 * plain.total.saved_bytes
    saved = {b.name: b.saved_bytes for b in checkpointed.by_branch()}
    # What the branches read, once, belongs to none of them.
    assert saved['ST'] == saved['GT'] == saved['RT'] == 0
    assert saved['rest'] == 16 * FLOAT * sum(h * w for _, h, w in MAPS)


# ---------------------------------------------------------------------- FPT


def shapes_of(channels, height=25, width=42):
    return [(c, *size)
            for c, size in zip(channels, sizes_of(height, width, len(channels)))]


MAPS = shapes_of([16, 16, 16])


def fpt(**kwargs):
    args = dict(
        in_channels=16, out_channels=16, num_levels=3, pyramid=None)
    return FPT(**{**args, **kwargs})


def fpt_formula(sizes, channels, embed, strides, concat, first=0):
    """Multiply-adds of each branch and level, one image.

    Finer levels than ``first`` have no GT, and RT does not read them.
    """
    pixels = [h * w for h, w in sizes]
    keys = [-(-h // s) * -(-w // s) for (h, w), s in zip(sizes, strides)]
    project, conv3x3 = channels * embed, 9 * embed * embed
    costs = {}

    def attend(level, source, parts):
        shares = parts * embed  # w_n . mean_j(k_j)
        return (pixels[level] * project + 2 * keys[source] * project + shares +
                pixels[level] * keys[source] * 2 * embed)

    def render(level, source):
        fine_high, fine_wide = sizes[source]
        stride = max(1, round(fine_high / sizes[level][0]))
        strided = ((fine_high - 1) // stride + 1) * (
            (fine_wide - 1) // stride + 1)
        return ((pixels[level] + 1 + pixels[source]) * project +
                (2 * pixels[level] + strided) * conv3x3)

    levels = range(len(sizes))
    for level in levels:
        costs['ST', level] = attend(level, level, 2)
        gt = [j for j in levels if j > level >= first]
        rt = [j for j in levels if first <= j < level]
        costs['GT', level] = sum(attend(level, j, 4) for j in gt)
        costs['RT', level] = sum(render(level, j) for j in rt)
        width = embed * (1 + len(gt) + len(rt))
        costs['fusion', level] = pixels[level] * (
            9 * channels * (channels + width) if concat else width * embed +
            9 * embed * channels)
    return costs


@pytest.mark.parametrize('height, width', [(25, 42), (33, 17), (9, 1), (64, 64)])
@pytest.mark.parametrize('preset, first', [
    ('light', 4), ('default', 1), ('full', 0), ('paper', 0)])
@pytest.mark.parametrize('batch', [1, 2])
def test_fpt_is_its_formula(height, width, preset, first, batch):
    neck = fpt(preset=preset, num_levels=4)
    sizes = sizes_of(height, width, 4)
    strides = neck.key_strides or neck.pooling_strides(
        [torch.empty(1, 16, *s) for s in sizes])
    want = fpt_formula(sizes, 16, neck.embed_channels, strides,
                       preset == 'paper', first)
    result = neck_complexity(neck, [(16, *s) for s in sizes], batch)
    got = {(b.name, b.level): b.macs for b in result.branches}
    assert got == {key: batch * macs for key, macs in want.items() if macs}
    assert result.total.macs == sum(got.values())
    assert [p.name for p in result.parts] == ['fpt']
    assert not result.notes and not result.not_counted


def test_neither_chunks_nor_paths_nor_devices_change_the_count(monkeypatch):
    q, k, v = (16, 5, 7), (16, 3, 4), (6, 3, 4)

    def attend(_, query, key, value, **options):
        query, key = (
            x.reshape(1, 2, 8, -1).transpose(2, 3) for x in (query, key))
        return functional.mixture_attention(
            query, key, value.flatten(2).transpose(1, 2),
            query.new_ones(1, 2), similarity='neg_euclid', **options)

    want = 35 * 12 * (2 * 8 + 6)
    for scores in (1, 50, 1 << 20):
        for device in ('cpu', 'cuda'):
            monkeypatch.setitem(budget.SCORE_BUDGET, device, scores)
        assert count(attend, q, k, v).macs == want
        assert count(with_data(attend), q, k, v).macs == want
    for path in ('chunked', 'fused', 'eager'):
        assert count(partial(attend, path=path), q, k, v).macs == want


def test_a_new_function_is_counted_by_its_formula(monkeypatch):
    """Wherever in the package it is, whoever imported it by name."""
    new = types.ModuleType('fpt_plugin.functional.new')
    user = types.ModuleType('user')

    def double(x, *, factor):
        return x @ x.transpose(2, 3) * factor

    new.double = user.double = double
    monkeypatch.setitem(sys.modules, new.__name__, new)
    monkeypatch.setitem(sys.modules, user.__name__, user)

    def run(_, x):
        return user.double(x, factor=7)

    assert count(run, (2, 3, 4)).macs == 2 * 3 * 3 * 4
    # set, so that undoing removes what the decorator sets
    key = ('fpt_plugin.functional', 'double')
    monkeypatch.setitem(formulas.OPERATIONS, key, None)
    formulas.operation(*key)(lambda x, *, factor: x.numel() * factor)
    assert count(run, (2, 3, 4)).macs == 2 * 3 * 4 * 7
    assert user.double is double


def test_local_attention():
    local = pytest.importorskip('fpt_plugin.functional.local_attention')

    def attend(_, query, key, value):
        query, key = (x.unflatten(1, (2, 3)) for x in (query, key))
        return local.local_mixture_attention(
            query, key, value, query.new_ones(1, 2), window=3)

    part = count(attend, (6, 9, 8), (6, 5, 4), (7, 5, 4))
    assert part.macs == 9 * 8 * 3**2 * (6 + 7)


def test_a_lambda_layer_is_its_formula():
    """The 1x1 convolution, the content's two products and the positions."""
    layer = LambdaLayer(64, num_heads=2, query_depth=8, intra_depth=3,
                        context_size=(5, 7))
    pixels, heads, depth, intra, channels = 9 * 11, 2, 8, 3, 32
    want = pixels * (
        64 * (heads * depth + intra * (depth + channels)) +  # 1x1
        depth * intra * channels + heads * depth * channels +  # content
        heads * intra * 5 * 7 * (depth + channels))  # positions
    for run in (lambda _, x: layer.to('meta')(x), with_data(
            lambda _, x: layer.to_empty(device='cpu')(x))):
        assert count(run, (64, 9, 11)).macs == want


def test_position_lambdas_count_the_cheaper_order(monkeypatch):
    def many_heads(_, x):
        query = x[:, :32].unflatten(1, (8, 4))
        value = x[:, None, :4]
        return position_lambda(query, value, x.new_zeros(4, 1, 3, 3))

    want = 9 * 11 * 4 * 4 * (3 * 3 + 8)
    assert want < 9 * 11 * 8 * 3 * 3 * (4 + 4)
    for order in ('attention', 'lambda', 'eager'):
        monkeypatch.setenv('FPT_LAMBDA', order)
        assert count(with_data(many_heads), (32, 9, 11)).macs == want


def test_mmcv_operations():
    from mmcv.ops import (
        CARAFE,
        DeformConv2dPack,
        ModulatedDeformConv2dPack,
        MultiScaleDeformableAttention,
    )
    shape, places = (6, 9, 11), 5 * 6
    for cls, offsets in ((DeformConv2dPack, 18),
                         (ModulatedDeformConv2dPack, 27)):
        layer = cls(6, 8, 3, stride=2, padding=1)
        part = count(lambda self, x: self.layer(x), shape, layer=layer)
        assert part.macs == places * 6 * 9 * (offsets + 8)
        # The input, and the offsets and masks that were made of it.
        assert part.saved_bytes >= (6 * 99 + offsets * places) * FLOAT
    part = count(lambda self, x, masks: self.layer(x, masks), shape,
                 (25, 18, 22), layer=CARAFE(5, 1, 2))
    assert part.macs == 6 * 18 * 22 * 25

    def attend(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.layer(
            tokens,
            reference_points=x.new_zeros(1, 99, 1, 2),
            spatial_shapes=torch.tensor([[9, 11]], device=x.device),
            level_start_index=torch.zeros(1, dtype=torch.long))

    layer = MultiScaleDeformableAttention(
        8, num_heads=2, num_levels=1, num_points=3, batch_first=True)
    result = neck_complexity(Lambda(attend, layer=layer), [(8, 9, 11)])
    assert result.complete and 'with data' in result.notes[0]
    assert result.total.macs == 99 * (8 * 8 * 2 + 8 * 2 * 3 * (2 + 1) + 3 * 8)


# ----------------------------------------------------------- what is missing


def broken(self, x):
    x = self.first(x)
    raise OSError('no such weather')


def test_what_cannot_run_is_named(capsys):
    neck = Lambda(broken, first=nn.Conv2d(3, 4, 1))
    result = neck_complexity(neck, [(3, 8, 8)])
    part = result.part('pyramid')
    assert part.parameters == 16
    assert part.macs is part.saved_bytes is None
    assert not result.complete and not result.to_dict()['complete']
    line, = result.not_counted
    assert 'pyramid: MACs (OSError: no such weather)' in line
    Console(width=120).print(result.table())
    printed = capsys.readouterr().out
    assert 'n/a' in printed and '>= n/a' in printed
    assert 'not counted: pyramid' in printed


def test_what_does_not_run_is_named():
    neck = Lambda(
        lambda self, x: self.first(x),
        first=nn.Conv2d(3, 4, 1),
        second=nn.Sequential(nn.Conv2d(3, 4, 1)))
    result = neck_complexity(neck, [(3, 8, 8)])
    assert result.total.macs == 64 * 12
    assert result.not_counted == ('second: no operator used its parameters', )
    assert not result.complete


def test_operators_without_a_formula_are_named():
    from mmcv.ops import PSAMask
    result = neck_complexity(
        Lambda(lambda self, x: self.mask(x), mask=PSAMask('collect', (3, 3))),
        [(9, 4, 4)])
    assert result.not_counted == ('mmcv.psamask_forward', )
    result = neck_complexity(
        Lambda(lambda self, x: torch.fft.rfft2(x).abs()), [(9, 4, 4)])
    assert any('_fft_r2c' in name for name in result.not_counted)


def test_the_model_is_left_as_it_is():
    neck = fpt().train()
    before = {k: v.clone() for k, v in neck.state_dict().items()}
    function = functional.mixture_attention
    for run in (neck, Lambda(broken, first=neck)):
        neck_complexity(run, MAPS)
        assert mixture.mixture_attention is function
        assert functional.mixture_attention is function
    assert all(m.training and 'forward' not in vars(m) for m in neck.modules())
    for name, value in neck.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        torch.autocast('meta')


# -------------------------------------------------------------------- models


@pytest.fixture(scope='module')
def plain():
    return complexity(FASTER_RCNN)


LEVELS = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
PIXELS = [h * w for h, w in LEVELS]


def test_faster_rcnn(plain):
    assert plain.model == 'FasterRCNN'
    assert plain.inputs == ((1, 3, 800, 1344), )
    assert [p.name for p in plain.parts] == [
        'backbone', 'pyramid', 'rpn_head', 'roi_head.bbox_head']
    # The known figure of a ResNet-50 at this size.
    assert plain.part('backbone').macs / 1e9 == pytest.approx(87.6, abs=0.05)
    laterals = [256, 512, 1024, 2048]
    assert plain.part('pyramid').macs == sum(
        p * 256 * (c + 9 * 256) for p, c in zip(PIXELS, laterals))
    assert plain.part('rpn_head').macs == sum(PIXELS) * 256 * (
        9 * 256 + 3 + 12)
    assert plain.part('roi_head.bbox_head').macs == 1000 * 1024 * (
        49 * 256 + 1024 + 81 + 320)
    assert plain.total.macs == sum(p.macs for p in plain.parts)
    assert plain.total.parameters == 41753056
    # Stem and first stage are frozen.
    assert plain.part('backbone').parameters - plain.part(
        'backbone').trainable == 64 * 147 + 128 + 215808
    assert plain.complete and not plain.branches
    note, = plain.notes
    assert '1000 proposals' in note and '512 samples' in note


def test_fpt_in_a_detector(plain):
    model, _ = load_model(str(ROOT / 'configs/fpt/faster-rcnn_r50_fpt_1x_coco.py'))
    model.eval()
    result = complexity(model)
    assert [p.name for p in result.parts] == [
        'backbone', 'pyramid', 'fpt', 'rpn_head', 'roi_head.bbox_head']
    for part in plain.parts:
        same = result.part(part.name)
        assert (same.macs, same.parameters) == (part.macs, part.parameters)
    gmacs = {b.name: b.macs / 1e9 for b in result.by_branch()}
    assert gmacs == pytest.approx(
        dict(ST=13.6, GT=5.8, RT=1.4, fusion=13.7), abs=0.05)
    own = result.part('fpt')
    for name in ('macs', 'parameters', 'trainable', 'saved_bytes'):
        assert getattr(own, name) == sum(
            getattr(b, name) for b in result.branches)
        assert getattr(result.total, name) == sum(
            getattr(p, name) for p in result.parts)
    assert own.parameters == sum(
        p.numel() for name, p in model.neck.named_parameters()
        if not name.startswith('pyramid.'))
    assert result.complete and len(result.notes) == 1
    # As one more neck of a list: the same parts, the same numbers.
    as_list = neck_complexity(
        nn.Sequential(model.neck.pyramid, fpt_alone(model.neck)),
        [(c, *s) for c, s in zip((256, 512, 1024, 2048), LEVELS)])
    for name in ('pyramid', 'fpt'):
        assert as_list.part(name).macs == result.part(name).macs
        assert as_list.part(name).parameters == result.part(name).parameters


def fpt_alone(neck):
    """FPT with the layers of another one, over a pyramid that is made."""
    alone = FPT(neck.out_channels, neck.out_channels, pyramid=None,
                num_levels=neck.num_levels)
    alone.load_state_dict({
        k: v for k, v in neck.state_dict().items()
        if not k.startswith('pyramid.')})
    return alone


def test_the_paper_preset_needs_no_data():
    """3,640 GMACs at full resolution, counted without computing them."""
    neck = FPT([256, 512, 1024, 2048], 256, num_outs=5, preset='paper')
    result = neck_complexity(
        neck, [(c, *s) for c, s in zip((256, 512, 1024, 2048), LEVELS)])
    assert result.part('fpt').macs == sum(
        fpt_formula(LEVELS[:4], 256, 256, (1, 1, 1, 1), True).values())
    assert result.part('fpt').macs / 1e9 == pytest.approx(3640, abs=1)
    assert not result.notes


def test_roi_heads_see_what_the_config_says():
    config = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'

    def run(*shape, **options):
        return complexity(config, shape, cfg_options={
            f'model.{name}': value for name, value in options.items()})

    usual = run(128, 160)
    few = run(128, 160, **{
        'test_cfg.rpn.max_per_img': 500,
        'test_cfg.rcnn.max_per_img': 25})
    boxes, masks = 'roi_head.bbox_head', 'roi_head.mask_head'
    one_mask = 196 * (4 * 9 * 256**2 + 4 * 256**2 + 4 * 256 * 80)
    assert usual.part(masks).macs == 3 * 100 * one_mask
    assert usual.part(masks).macs == 4 * few.part(masks).macs
    assert usual.part(boxes).macs == 2 * few.part(boxes).macs
    # In training the samplers' numbers hold.
    assert usual.part(masks).saved_bytes == few.part(masks).saved_bytes > 0
    assert '500 proposals' in few.notes[0] and '25 det' in few.notes[0]
    assert usual.part(boxes).macs == run(64, 64).part(boxes).macs


def test_segmentor():
    result = complexity('mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py')
    assert result.inputs == ((1, 3, 512, 1024), )  # the config's crop
    assert [p.name for p in result.parts] == [
        'backbone', 'pyramid', 'decode_head']
    pixels = [128 * 256 // 4**i for i in range(4)]
    assert result.part('pyramid').macs == sum(
        p * 256 * (c + 9 * 256)
        for p, c in zip(pixels, (256, 512, 1024, 2048)))
    first, more = 9 * 256 * 128, 9 * 128 * 128
    # A level is convolved, then enlarged, until it has the finest size.
    assert result.part('decode_head').macs == pixels[0] * 19 * 128 + sum(
        pixels[level] * first + sum(pixels[i] * more for i in range(1, level))
        for level in range(1, 4)) + pixels[0] * first
    assert result.total.parameters == result.total.trainable
    assert result.complete and not result.notes


def test_auxiliary_heads_and_single_pixels():
    """A pooled pixel of one image has no variance to train with."""
    result = complexity(
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        (64, 64))
    auxiliary = result.part('auxiliary_head')
    assert auxiliary.macs == 0 < auxiliary.saved_bytes
    assert 'auxiliary_head runs in training alone' in result.notes
    assert any('but for the batch norms' in note for note in result.notes)
    assert result.complete


def test_a_model_that_needs_data(monkeypatch):
    """Deformable attention asks tensors for sizes."""
    config = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
    result = complexity(
        config, (64, 96), cfg_options={'model.num_queries': 10})
    assert result.complete
    assert any('MACs: with data' in note for note in result.notes)
    tokens = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    one = tokens * 256 * (2 * 256 + 8 * 16 * 3 + 2 * 1024) + (
        tokens * 8 * 16 * 32)
    assert result.part('encoder').macs == 6 * one


def test_queries_of_training_alone():
    """DINO's have a generator without a forward; its losses want more."""
    config = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
    result = complexity(
        config, (64, 96), cfg_options={
            'model.num_queries': 10,
            'model.encoder.num_layers': 1
        })
    assert result.complete
    assert result.part('dn_query_generator').macs == 0
    assert 'dn_query_generator runs in training alone' in result.notes
    assert not any('evaluation mode' in note for note in result.notes)


@pytest.mark.slow
@pytest.mark.parametrize('config', [
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py',
    'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py',
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'mmdet::soft_teacher/'
    'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
    'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    'mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
])
def test_the_hosts_models_are_counted_whole(config):
    result = complexity(config, (128, 160))
    assert result.complete, result.not_counted
    assert all(p.saved_bytes is not None for p in result.parts)
    assert result.total.macs > 1e9


def test_wrapped_detectors():
    model, _ = load_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    wrapper = nn.Module()
    wrapper.module = model
    wrapped = complexity(wrapper, (64, 64), batch=2)
    result = complexity(model, (64, 64), batch=2)
    assert wrapped.parts == result.parts
    assert result.part('bbox_head').macs == 2 * sum(
        (64 // s)**2 if s < 64 else 1 for s in (8, 16, 32, 64, 128)
    ) * 256 * 9 * (8 * 256 + 9 * 80 + 9 * 4)


# ------------------------------------------------------------ arguments, tool


@pytest.mark.parametrize('call, words', [
    (lambda: neck_complexity(fpt(), [(16, 8)]), r'shapes .*got \(16, 8\)'),
    (lambda: neck_complexity(fpt(), []), 'shapes .*got none'),
    (lambda: neck_complexity(fpt(), [(16, 0, 8)]), 'shapes .*got 0'),
    (lambda: neck_complexity(fpt(), MAPS, batch=0), 'batch .*got 0'),
    (lambda: complexity(nn.Linear(1, 1)), 'backbone, got Linear'),
    (lambda: complexity(Config(dict(default_scope='mmdet'))), 'set model'),
    (lambda: complexity(Config(dict(model=dict(type='x')))),
     'set default_scope'),
])
def test_bad_values(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_bad_types_and_names(plain):
    with pytest.raises(TypeError, match='neck must be .*got dict'):
        neck_complexity(dict(type='FPT'), MAPS)
    with pytest.raises(TypeError, match='batch must be an int, got 1.5'):
        complexity(FASTER_RCNN, batch=1.5)
    with pytest.raises(KeyError, match="got 'fpt'"):
        plain.part('fpt')
    with pytest.raises(FileNotFoundError):
        complexity('mmdet::no_such/config.py')


class Detector(nn.Module):
    """What is asked of a model: parts, and a forward of tensors."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.bbox_head = nn.Conv2d(4, 5, 1)
        self.bbox_head.weight.requires_grad = False
        self.shared = self.bbox_head  # counted once
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples, mode):
        assert mode == 'tensor'
        return self.bbox_head(self.backbone(inputs)) * self.scale


def test_any_detector():
    for shape in ((6, 7, 8), (6, )):
        with pytest.raises(ValueError, match='shape must be height and width'):
            complexity(Detector(), shape)
    result = complexity(Detector(), (6, 7))
    assert [(p.name, p.parameters, p.trainable, p.macs)
            for p in result.parts] == [('backbone', 16, 16, 42 * 12),
                                       ('bbox_head', 25, 5, 42 * 20),
                                       ('other', 1, 1, 0)]
    # The head wants no gradient of its weight, but the backbone's through it.
    assert [p.saved_bytes for p in result.parts] == [
        42 * 3 * FLOAT, 42 * 4 * FLOAT, 42 * 5 * FLOAT]
    frozen = Detector()
    frozen.backbone.requires_grad_(False)
    assert complexity(frozen, (6, 7)).part('backbone').saved_bytes == 0
    assert json.loads(json.dumps(result.to_dict()))['total'] == dict(
        name='total', parameters=42, trainable=22, macs=42 * 32,
        saved_bytes=result.total.saved_bytes, level=None)


def test_tool(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, 'Console', partial(Console, width=100))
    config = ROOT / 'configs/quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
    out = tmp_path / 'new' / 'out.json'
    module.main(module.parser().parse_args([
        str(config), '--shape', '64', '96', '--batch', '2', '--per-level',
        '--json', str(out), '--cfg-options', 'model.neck.num_levels=3',
    ]))
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written['inputs'] == [[2, 3, 64, 96]]
    assert {b['level'] for b in written['branches']} == {0, 1, 2}
    for words in ('FasterRCNN on 2x3x64x96', 'backbone', 'pyramid', 'fpt',
                  '  GT', '    level 1', 'total', 'multiply-adds',
                  f'{written["total"]["parameters"]:,}',
                  f'{written["total"]["macs"] / 1e9:.2f}'):
        assert words in printed
    assert 'multiply-adds' in module.parser().format_help()


@pytest.mark.parametrize('flags, words', [
    (['--shape', '0', '8'], "--shape: expected a whole number of at least 1, "
     "got '0'"),
    (['--batch', 'many'], "--batch: expected a whole number of at least 1, "
     "got 'many'"),
])
def test_bad_flags(flags, words, capsys):
    with pytest.raises(SystemExit):
        module.parser().parse_args(['config.py', *flags])
    assert words in capsys.readouterr().err


def test_tool_fails_in_one_line(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("model = dict(type='FasterRCNN')\n")
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'complexity.py', config],
        capture_output=True,
        text=True)
    assert result.returncode == 1
    assert 'complexity failed: the config must set default_scope' in result.stderr
    assert 'Traceback' not in result.stderr
