"""Heads and maps must have the same number and strides."""

import copy
import pickle

import pytest
import torch
from helpers.graft_detectors import FPN, retinanet, wrapped

from fpt_plugin.detectors.strides import watch_strides
from fpt_plugin.openmmlab.models import build_model, load_config

CONFIGS = dict(
    retinanet='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    fcos='mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    guided='mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
    mask_rcnn='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    c4='mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',  # without a neck
    sem_fpn='mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    student=wrapped(retinanet(dict(FPN, num_outs=4))),
)
STRIDES, HALVED = [8, 16, 32, 64, 128], [4, 8, 16, 32, 64]
ANCHOR_STRIDES = 'bbox_head.anchor_generator.strides'
ROI_STRIDES = 'roi_head.bbox_roi_extractor.featmap_strides'
MASK_STRIDES = 'roi_head.mask_roi_extractor.featmap_strides'
ANCHORS = 'bbox_head: AnchorGenerator'


def first_pass(name, changes=None, height=256, width=320):
    """Run the first pass on the meta device."""
    cfg = load_config(copy.deepcopy(CONFIGS.get(name, name)), {
        f'model.{key}': value for key, value in (changes or {}).items()})
    with torch.device('meta'):
        model = build_model(cfg).eval()
        watch_strides(model)
        part = getattr(model, 'student', model)
        part.extract_feat(torch.empty(1, 3, height, width))
    return model


@pytest.mark.parametrize('name, changes, part, words', [
    ('retinanet', {'neck.num_outs': 4}, ANCHORS,
     '5 levels of strides [8, 16, 32, 64, 128] for 4 maps of strides [8, 16, 32, 64]'),
    ('retinanet', {ANCHOR_STRIDES: STRIDES[:4]}, ANCHORS, '4 levels of strides [8, 16'),
    ('retinanet', {ANCHOR_STRIDES: HALVED}, ANCHORS,
     '5 levels of strides [4, 8, 16, 32, 64] for 5 maps of strides [8, 16, 32, 64, '),
    ('retinanet', {ANCHOR_STRIDES: [8, 16, 32, 32, 128]}, ANCHORS, '32, 32, 128] for'),
    ('retinanet', {ANCHOR_STRIDES: [8, 16, 32, (64, 32), 128]}, ANCHORS,
     '32, (32, 64), 128] for'),  # (vertical, horizontal) in the message
    ('retinanet', {'backbone.strides': (1, 2, 2, 1)}, ANCHORS,
     'for 5 maps of strides [8, 16, 16, 32, 64]'),
    ('fcos', {'bbox_head.strides': HALVED}, 'bbox_head: MlvlPointGenerator',
     'strides [4, 8, 16, 32, 64] for'),
    ('guided', {'neck.num_outs': 4}, ANCHORS, 'for 4 maps'),
    ('mask_rcnn', {'rpn_head.anchor_generator.strides': STRIDES},
     'rpn_head: AnchorGenerator', 'for 5 maps'),
    ('mask_rcnn', {ROI_STRIDES: STRIDES[:4]}, ROI_STRIDES, 'for 5 maps'),
    ('mask_rcnn', {ROI_STRIDES: [*HALVED, 128]}, ROI_STRIDES, '6 levels of'),
    ('mask_rcnn', {MASK_STRIDES: STRIDES[:2]}, MASK_STRIDES, 'for 5 maps'),
    ('c4', {'rpn_head.anchor_generator.strides': [32]}, 'rpn_head: AnchorGenerator',
     '1 levels of strides [32] for 1 maps of strides [16]'),
    ('student', {}, ANCHORS, 'for 4 maps'),
])
def test_the_message_names_levels_and_maps(name, changes, part, words):
    with pytest.raises(ValueError) as caught:
        first_pass(name, changes)
    source = 'ResNet' if name == 'c4' else 'FPN'
    assert str(caught.value).startswith(f'{part} must fit the maps of {source}, got ')
    assert words in str(caught.value)


@pytest.mark.parametrize('head, indices', [
    ('decode_head', [0, 1, 2, 5]), ('auxiliary_head', 4), ('auxiliary_head', -5)])
def test_indices_beyond_the_maps_are_named(head, indices):
    fcn = dict(type='FCNHead', in_channels=256, channels=8, num_classes=19, in_index=-1)
    wrong = indices[-1] if isinstance(indices, list) else indices
    first_pass('sem_fpn', {'auxiliary_head': fcn})
    with pytest.raises(ValueError, match=f'{head}.in_index must index the maps of FPN, '
                       f'got {wrong} for 4 maps'):
        first_pass('sem_fpn', {'auxiliary_head': fcn, f'{head}.in_index': indices})


@pytest.mark.parametrize('size', [
    (256, 320), (800, 1333), (97, 61), (33, 500), (1, 1), (75, 1000)])
@pytest.mark.parametrize('name, changes', [
    ('retinanet', {}), ('fcos', {}), ('mask_rcnn', {}), ('c4', {}), ('sem_fpn', {}),
    ('mask_rcnn', {ROI_STRIDES: [4, 8]})])
def test_fitting_heads_pass(name, changes, size):
    first_pass(name, changes, *size)


@pytest.mark.parametrize('size', [(64, 64), (800, 1333), (97, 61)])
def test_small_maps_are_compared(size):
    with pytest.raises(ValueError, match='strides'):
        first_pass('retinanet', {ANCHOR_STRIDES: HALVED}, *size)


# Heads with several extractors, merged maps, one level, several generators, and
# strides that are no powers of two; heads of mmseg without a neck.
@pytest.mark.parametrize('name', [
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
    'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'guided',
])
def test_configs_of_the_libraries_pass(name):
    model = first_pass(name)
    assert next(iter(model.backbone._forward_hooks.values())).__self__.done


def small_model(**changes):
    cfg = retinanet(FPN)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    model = build_model(cfg).eval()
    watch_strides(model)
    return model


def test_checked_models_can_be_copied_and_pickled():
    """For averaged weights and for other processes."""
    model = small_model(**{ANCHOR_STRIDES: STRIDES})
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match='strides'):
            twin.extract_feat(torch.zeros(1, 3, 64, 64))


def test_only_the_first_pass_is_checked():
    model = small_model()
    model.extract_feat(torch.zeros(1, 3, 64, 64))
    model.neck.num_outs = 4
    assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 4
