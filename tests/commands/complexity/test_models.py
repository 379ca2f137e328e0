"""Counts of detectors and segmentors, and the command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from rich.console import Console
from torch import nn

from fpt_plugin import FPT
from fpt_plugin.commands.common import load_model
from fpt_plugin.commands.complexity import command as module
from fpt_plugin.commands.complexity.command import complexity, neck_complexity

ROOT = Path(__file__).resolve().parents[3]
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
LEVELS = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
PIXELS = [h * w for h, w in LEVELS]
CHANNELS = (256, 512, 1024, 2048)


@pytest.fixture(scope='module')
def plain():
    return complexity(FASTER_RCNN)


def test_faster_rcnn(plain):
    assert plain.model == 'FasterRCNN'
    assert plain.inputs == ((1, 3, 800, 1344), )
    assert [p.name for p in plain.parts] == [
        'backbone', 'pyramid', 'rpn_head', 'roi_head.bbox_head']
    # The published number of a ResNet-50 at this size.
    assert plain.part('backbone').macs / 1e9 == pytest.approx(87.6, abs=0.05)
    assert plain.part('pyramid').macs == sum(
        p * 256 * (c + 9 * 256) for p, c in zip(PIXELS, CHANNELS))
    assert plain.part('rpn_head').macs == sum(PIXELS) * 256 * (
        9 * 256 + 3 + 12)
    assert plain.part('roi_head.bbox_head').macs == 1000 * 1024 * (
        49 * 256 + 1024 + 81 + 320)
    assert plain.total.macs == sum(p.macs for p in plain.parts)
    assert plain.total.parameters == 41753056
    # Stem and first stage are frozen.
    backbone = plain.part('backbone')
    assert backbone.parameters - backbone.trainable == 64 * 147 + 128 + 215808
    assert plain.complete and not plain.branches
    note, = plain.notes
    assert '1000 proposals' in note and '512 samples' in note
    with pytest.raises(KeyError, match="got 'fpt'"):
        plain.part('fpt')


def test_fpt_in_a_detector(plain):
    model, _ = load_model(str(ROOT / 'configs/fpt/faster-rcnn_r50_fpt_1x_coco.py'))
    result = complexity(model.eval())
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
    # FPT as another neck in a list: the same parts and counts.
    single = FPT(256, 256, pyramid=None, num_levels=4)
    as_list = neck_complexity(nn.Sequential(model.neck.pyramid, single), [
        (c, *s) for c, s in zip(CHANNELS, LEVELS)])
    for name in ('pyramid', 'fpt'):
        assert as_list.part(name).macs == result.part(name).macs
        assert as_list.part(name).parameters == result.part(name).parameters


def test_numbers_of_rois_follow_the_config():
    config = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
    usual = complexity(config, (128, 160))
    few = complexity(config, (128, 160), cfg_options={
        'model.test_cfg.rpn.max_per_img': 500,
        'model.test_cfg.rcnn.max_per_img': 25})
    boxes, masks = 'roi_head.bbox_head', 'roi_head.mask_head'
    one_mask = 196 * (4 * 9 * 256**2 + 4 * 256**2 + 4 * 256 * 80)
    assert usual.part(masks).macs == 3 * 100 * one_mask
    assert usual.part(masks).macs == 4 * few.part(masks).macs
    assert usual.part(boxes).macs == 2 * few.part(boxes).macs
    # In training the numbers of the samplers count.
    assert usual.part(masks).saved_bytes == few.part(masks).saved_bytes > 0
    assert '500 proposals' in few.notes[0] and '25 det' in few.notes[0]


def test_segmentor():
    result = complexity('mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py')
    assert result.inputs == ((1, 3, 512, 1024), )  # the config's crop
    assert [p.name for p in result.parts] == [
        'backbone', 'pyramid', 'decode_head']
    pixels = [128 * 256 // 4**i for i in range(4)]
    assert result.part('pyramid').macs == sum(
        p * 256 * (c + 9 * 256) for p, c in zip(pixels, CHANNELS))
    first, more = 9 * 256 * 128, 9 * 128 * 128
    # Each level is convolved and enlarged until it has the finest size.
    assert result.part('decode_head').macs == pixels[0] * 19 * 128 + sum(
        pixels[level] * first + sum(pixels[i] * more for i in range(1, level))
        for level in range(1, 4)) + pixels[0] * first
    assert result.total.parameters == result.total.trainable
    assert result.complete and not result.notes


def test_auxiliary_heads_and_single_pixels():
    """A pooled pixel of one image has no variance for a batch norm."""
    result = complexity(
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', (64, 64))
    auxiliary = result.part('auxiliary_head')
    assert auxiliary.macs == 0 < auxiliary.saved_bytes
    assert 'auxiliary_head runs only in training' in result.notes
    assert any('except for batch norms' in note for note in result.notes)
    assert result.complete


def test_a_model_that_needs_data():
    """Deformable attention reads sizes from tensors."""
    result = complexity(
        'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', (64, 96),
        cfg_options={'model.num_queries': 10})
    assert result.complete
    assert any('MACs: with data' in note for note in result.notes)
    tokens = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    one = tokens * 256 * (2 * 256 + 8 * 16 * 3 + 2 * 1024) + (
        tokens * 8 * 16 * 32)
    assert result.part('encoder').macs == 6 * one


def test_queries_for_training():
    """DINO has a query generator without a forward."""
    result = complexity(
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', (64, 96),
        cfg_options={'model.num_queries': 10, 'model.encoder.num_layers': 1})
    assert result.complete
    assert result.part('dn_query_generator').macs == 0
    assert 'dn_query_generator runs only in training' in result.notes
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
def test_models_of_the_libraries_are_complete(config):
    result = complexity(config, (128, 160))
    assert result.complete, result.not_counted
    assert all(p.saved_bytes is not None for p in result.parts)
    assert result.total.macs > 1e9


class Detector(nn.Module):
    """The least that a model needs: parts, and a forward of tensors."""

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
    result = complexity(Detector(), (6, 7))
    assert [(p.name, p.parameters, p.trainable, p.macs)
            for p in result.parts] == [('backbone', 16, 16, 42 * 12),
                                       ('bbox_head', 25, 5, 42 * 20),
                                       ('other', 1, 1, 0)]
    # The head's weight needs no gradient, but the backbone's output does.
    assert [p.saved_bytes for p in result.parts] == [
        42 * 3 * 4, 42 * 4 * 4, 42 * 5 * 4]
    wrapper = nn.Module()
    wrapper.module = Detector()
    assert complexity(wrapper, (6, 7)).parts == result.parts
    wrapper.module.backbone.requires_grad_(False)
    assert complexity(wrapper, (6, 7)).part('backbone').saved_bytes == 0
    assert json.loads(json.dumps(result.to_dict()))['total'] == dict(
        name='total', parameters=42, trainable=22, macs=42 * 32,
        saved_bytes=result.total.saved_bytes, level=None)


@pytest.mark.parametrize('error, words, model, arguments', [
    (ValueError, 'shape must be height and width', Detector(), ((6, 7, 8), )),
    (ValueError, 'shape must be height and width', Detector(), ((6, ), )),
    (ValueError, 'backbone, got Linear', nn.Linear(1, 1), ()),
    (ValueError, 'set model', Config(dict(default_scope='mmdet')), ()),
    (ValueError, 'set default_scope', Config(dict(model=dict(type='x'))), ()),
    (TypeError, 'batch must be an int, got 1.5', FASTER_RCNN, (None, 1.5)),
    (FileNotFoundError, 'no_such', 'mmdet::no_such/config.py', ()),
])
def test_bad_arguments(error, words, model, arguments):
    with pytest.raises(error, match=words):
        complexity(model, *arguments)


def test_command(tmp_path, capsys, monkeypatch):
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
                  '  GT', '    level 1', 'total',
                  f'{written["total"]["parameters"]:,}',
                  f'{written["total"]["macs"] / 1e9:.2f}'):
        assert words in printed
    with pytest.raises(SystemExit):
        module.parser().parse_args(['config.py', '--shape', '0', '8'])
    assert "--shape: expected a whole number of at least 1, got '0'" in \
        capsys.readouterr().err
