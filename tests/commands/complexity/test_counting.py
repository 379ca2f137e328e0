"""Counts of operators, functions and FPT equal formulas."""

from __future__ import annotations

import sys
import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers.base import sizes_of
from rich.console import Console
from torch import nn

from fpt_plugin import FPT, LambdaLayer, functional
from fpt_plugin.commands.complexity import formulas
from fpt_plugin.commands.complexity.command import neck_complexity
from fpt_plugin.functional import budget, position_lambda
from fpt_plugin.layers import mixture

FLOAT = 4  # bytes


class Lambda(nn.Module):
    """A neck with a function as its forward."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, maps):
        return self.function(self, *maps)


def count(function, *shapes, batch=1, **children):
    """Return the part ``pyramid`` of a neck with a function as its forward."""
    result = neck_complexity(Lambda(function, **children), shapes, batch)
    assert result.complete, result.not_counted
    return result.part('pyramid')


def layer(self, *maps):
    return self.layer(*maps)


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


# A 4x4 map of 6 channels has 3 heads of 4 queries and keys of 8 numbers.
def fused_attention(_, x):
    heads = x.reshape(1, 3, 4, 8)
    return F.scaled_dot_product_attention(heads, heads, heads[..., :5])


def with_data(function):
    """Make a function fail on the meta device."""

    def run(self, x, *maps):
        assert x.isfinite().all()
        return function(self, x, *maps)

    return run


MULTIHEAD = 16 * (4 * 6 * 6 + 2 * 16 * 6)


@pytest.mark.parametrize('macs, function, shape, child', [
    (8 * 5 * 6 * 3 * 9, layer, (6, 9, 11),
     lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)),
    (6 * 9 * 11 * 4 * 4, layer, (6, 9, 11),
     lambda: nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2)),
    (6 * 9 * 11 * 5, layer, (6, 9, 11), lambda: nn.Linear(11, 5)),
    (6 * 9 * 9 * 11, lambda self, x: x @ x.transpose(2, 3), (6, 9, 11), nn.Identity),
    (6 * 9 * 11, lambda self, x: torch.einsum('bchw,cw->bhc', x, x[0, :, 0]),
     (6, 9, 11), nn.Identity),
    (2 * 6 * 6 * 9 + 6 * 9 + 9 + 6 * 9, in_place, (1, 6, 9), nn.Identity),
    (3 * 4 * 4 * (8 + 5), fused_attention, (6, 4, 4), nn.Identity),
    (MULTIHEAD, multihead, (6, 4, 4),
     lambda: nn.MultiheadAttention(6, 2, batch_first=True)),
    (MULTIHEAD, with_data(multihead), (6, 4, 4),
     lambda: nn.MultiheadAttention(6, 2, batch_first=True)),
    (0, lambda self, x: F.max_pool2d(F.interpolate(
        self.layer(x).relu().softmax(1) * x, scale_factor=2), 2), (6, 4, 4),
     lambda: nn.BatchNorm2d(6)),
])
def test_operators(macs, function, shape, child):
    assert count(function, shape, layer=child()).macs == macs


def test_saved_for_backward_and_batch():
    pixels = 64
    conv = partial(nn.Conv2d, 3, 4, 3, padding=1)

    def saved(function, **children):
        return count(function, (3, 8, 8), **children).saved_bytes

    # The convolution's input and the ReLU's output, without weights.
    assert saved(lambda self, x: self.layer(x).relu(), layer=conv()) == (
        3 + 4) * pixels * FLOAT
    # Two users of one map; a view of it.
    assert saved(lambda self, x: self.one(x) + self.two(x.flip(0).flip(0)[:]),
                 one=conv(), two=conv()) == 2 * 3 * pixels * FLOAT
    assert saved(lambda self, x: self.one(x) + self.two(x.view(1, 3, 8, 8)),
                 one=conv(), two=conv()) == 3 * pixels * FLOAT
    # A pooling saves its input and indices of 8 bytes.
    assert saved(lambda self, x: F.max_pool2d(x, 2)) == (
        3 * pixels * FLOAT + 3 * pixels // 4 * 8)
    run = partial(count, layer, (3, 8, 8), layer=conv())
    assert run(batch=3).macs == 3 * run().macs == 3 * 4 * pixels * 27


# ---------------------------------------------------------------------- FPT


def shapes_of(channels, height=25, width=42):
    return [(c, *size)
            for c, size in zip(channels, sizes_of(height, width, len(channels)))]


MAPS = shapes_of([16, 16, 16])


def fpt(**kwargs):
    return FPT(**{**dict(in_channels=16, out_channels=16, num_levels=3,
                         pyramid=None), **kwargs})


def fpt_formula(sizes, channels, embed, strides, concat, first=0):
    """Multiply-adds of each branch and level, for one image.

    Levels finer than ``first`` have no GT, and RT does not read them.
    """
    pixels = [h * w for h, w in sizes]
    keys = [-(-h // s) * -(-w // s) for (h, w), s in zip(sizes, strides)]
    project, conv3x3 = channels * embed, 9 * embed * embed
    costs = {}

    def attend(level, source, parts):
        mixture_weights = parts * embed  # w_n . mean_j(k_j)
        return (pixels[level] * project + 2 * keys[source] * project +
                mixture_weights + pixels[level] * keys[source] * 2 * embed)

    def render(level, source):
        height, width = sizes[source]
        stride = max(1, round(height / sizes[level][0]))
        strided = ((height - 1) // stride + 1) * ((width - 1) // stride + 1)
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
def test_fpt_equals_its_formula(height, width, preset, first, batch):
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


def test_the_paper_preset_needs_no_data():
    """Count 3,640 GMACs at full resolution without computing them."""
    channels = (256, 512, 1024, 2048)
    sizes = [(200, 336), (100, 168), (50, 84), (25, 42)]
    result = neck_complexity(FPT(list(channels), 256, num_outs=5, preset='paper'),
                             [(c, *s) for c, s in zip(channels, sizes)])
    macs = result.part('fpt').macs
    assert macs == sum(fpt_formula(sizes, 256, 256, (1, 1, 1, 1), True).values())
    assert macs / 1e9 == pytest.approx(3640, abs=1)
    assert not result.notes


def test_saved_without_data_equals_saved_by_autograd(monkeypatch):
    neck = fpt(pyramid=dict(type='BottomUpPyramid'), in_channels=[8, 16, 24])
    shapes = shapes_of([8, 16, 24])
    maps = [torch.rand(2, *s, requires_grad=True) for s in shapes]
    constant = {p.data_ptr() for p in neck.parameters()}
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x  # prevent reuse of the address
        return x

    monkeypatch.setenv('FPT_ATTENTION', 'chunked')
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outs = neck.train()(maps)
    monkeypatch.delenv('FPT_ATTENTION')
    assert len(outs) == 3
    result = neck_complexity(neck, shapes, batch=2)
    assert result.total.saved_bytes == sum(
        x.untyped_storage().nbytes() for address, x in kept.items()
        if address not in constant)
    assert not result.notes


def test_checkpointed_branches_save_less():
    plain, checkpointed = (neck_complexity(fpt(checkpoint_branches=on), MAPS)
                           for on in (False, True))
    assert checkpointed.part('fpt').macs == plain.part('fpt').macs
    assert checkpointed.total.saved_bytes < 0.7 * plain.total.saved_bytes
    saved = {b.name: b.saved_bytes for b in checkpointed.by_branch()}
    # The inputs of the branches are saved once, for none of them.
    assert saved['ST'] == saved['GT'] == saved['RT'] == 0
    assert saved['rest'] == 16 * FLOAT * sum(h * w for _, h, w in MAPS)


# ------------------------------------------------------------------ functions


def test_attention_counts_are_equal_for_all_paths(monkeypatch):
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


def test_local_attention():

    def attend(_, query, key, value):
        query, key = (x.unflatten(1, (2, 3)) for x in (query, key))
        return functional.local_mixture_attention(
            query, key, value, query.new_ones(1, 2), window=3)

    part = count(attend, (6, 9, 8), (6, 5, 4), (7, 5, 4))
    assert part.macs == 9 * 8 * 3**2 * (6 + 7)


def test_a_new_function_is_counted_by_its_formula(monkeypatch):
    """Find it in any module of the package and in any module that imports it."""
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
    # Set it here, so that monkeypatch removes the decorator's entry.
    key = ('fpt_plugin.functional', 'double')
    monkeypatch.setitem(formulas.OPERATIONS, key, None)
    formulas.operation(*key)(lambda x, *, factor: x.numel() * factor)
    assert count(run, (2, 3, 4)).macs == 2 * 3 * 4 * 7
    assert user.double is double


def test_lambdas(monkeypatch):
    lambdas = LambdaLayer(64, num_heads=2, query_depth=8, intra_depth=3,
                          context_size=(5, 7))
    pixels, heads, depth, intra, channels = 9 * 11, 2, 8, 3, 32
    want = pixels * (
        64 * (heads * depth + intra * (depth + channels)) +  # 1x1
        depth * intra * channels + heads * depth * channels +  # content
        heads * intra * 5 * 7 * (depth + channels))  # positions
    for run in (lambda _, x: lambdas.to('meta')(x), with_data(
            lambda _, x: lambdas.to_empty(device='cpu')(x))):
        assert count(run, (64, 9, 11)).macs == want

    def many_heads(_, x):
        query = x[:, :32].unflatten(1, (8, 4))
        value = x[:, None, :4]
        return position_lambda(query, value, x.new_zeros(4, 1, 3, 3))

    cheaper = 9 * 11 * 4 * 4 * (3 * 3 + 8)
    assert cheaper < 9 * 11 * 8 * 3 * 3 * (4 + 4)
    for order in ('attention', 'lambda', 'eager'):
        monkeypatch.setenv('FPT_LAMBDA', order)
        assert count(with_data(many_heads), (32, 9, 11)).macs == cheaper


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
        part = count(layer, shape, layer=cls(6, 8, 3, stride=2, padding=1))
        assert part.macs == places * 6 * 9 * (offsets + 8)
        # The input, and the offsets and masks that were computed from it.
        assert part.saved_bytes >= (6 * 99 + offsets * places) * FLOAT
    part = count(layer, shape, (25, 18, 22), layer=CARAFE(5, 1, 2))
    assert part.macs == 6 * 18 * 22 * 25

    def attend(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.layer(
            tokens,
            reference_points=x.new_zeros(1, 99, 1, 2),
            spatial_shapes=torch.tensor([[9, 11]], device=x.device),
            level_start_index=torch.zeros(1, dtype=torch.long))

    deformable = MultiScaleDeformableAttention(
        8, num_heads=2, num_levels=1, num_points=3, batch_first=True)
    result = neck_complexity(Lambda(attend, layer=deformable), [(8, 9, 11)])
    assert result.complete and 'with data' in result.notes[0]
    assert result.total.macs == 99 * (8 * 8 * 2 + 8 * 2 * 3 * (2 + 1) + 3 * 8)


# ------------------------------------------------------------- missing counts


def broken(self, x):
    self.layer(x)
    raise OSError('broken by a test')


def test_errors_are_reported(capsys):
    result = neck_complexity(Lambda(broken, layer=nn.Conv2d(3, 4, 1)), [(3, 8, 8)])
    part = result.part('pyramid')
    assert part.parameters == 16
    assert part.macs is part.saved_bytes is None
    assert not result.complete and not result.to_dict()['complete']
    line, = result.not_counted
    assert 'pyramid: MACs (OSError: broken by a test)' in line
    Console(width=120).print(result.table())
    printed = capsys.readouterr().out
    assert '>= n/a' in printed and 'not counted: pyramid' in printed


def test_unused_modules_and_unknown_operators_are_reported():
    from mmcv.ops import PSAMask
    unused = nn.Sequential(nn.Conv2d(3, 4, 1))
    for macs, reported, function, shape, child in (
            (64 * 12, 'unused: no operator used its parameters', layer, (3, 8, 8),
             nn.Conv2d(3, 4, 1)),
            (0, 'mmcv.psamask_forward', layer, (9, 4, 4), PSAMask('collect', (3, 3))),
            (0, '_fft_r2c', lambda self, x: torch.fft.rfft2(x).abs(), (9, 4, 4),
             nn.Identity())):
        children = dict(unused=unused) if macs else {}
        result = neck_complexity(Lambda(function, layer=child, **children), [shape])
        assert result.total.macs == macs and not result.complete
        assert any(reported in line for line in result.not_counted)


def test_the_model_is_not_changed():
    neck = fpt().train()
    before = {k: v.clone() for k, v in neck.state_dict().items()}
    function = functional.mixture_attention
    for model in (neck, Lambda(broken, layer=neck)):
        neck_complexity(model, MAPS)
        assert mixture.mixture_attention is function
        assert functional.mixture_attention is function
    assert all(m.training and 'forward' not in vars(m) for m in neck.modules())
    for name, value in neck.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        torch.autocast('meta')


@pytest.mark.parametrize('shapes, words', [
    ([(16, 8)], r'shapes .*got \(16, 8\)'), ([], 'shapes .*got none'),
    ([(16, 0, 8)], 'shapes .*got 0')])
def test_bad_values(shapes, words):
    with pytest.raises(ValueError, match=words):
        neck_complexity(fpt(), shapes)
    with pytest.raises(ValueError, match='batch .*got 0'):
        neck_complexity(fpt(), MAPS, batch=0)
    with pytest.raises(TypeError, match='neck must be .*got dict'):
        neck_complexity(dict(type='FPT'), MAPS)
