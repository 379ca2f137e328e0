"""Heads and maps must agree in number and in strides."""

import copy
import pickle

import pytest
import torch
from helpers.graft_detectors import BACKBONE, CHANNELS, FPN, retinanet, wrapped
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from fpt_plugin.detectors.strides import watch_strides
from fpt_plugin.openmmlab.models import build_model, load_config

STRIDES = [4, 8, 16, 32, 64]
SHIFTED = [8, 16, 32, 64, 128]


def two_stage(strides=STRIDES, regions=STRIDES[:4], masks=None):
    """Faster R-CNN's parts; of a cascade and with masks where given."""
    def extractor(strides):
        return dict(
            type='SingleRoIExtractor', out_channels=16, featmap_strides=strides,
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0))
    head = dict(type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=8,
                roi_feat_size=7, num_classes=2)
    roi_head = dict(type='StandardRoIHead', bbox_head=head,
                    bbox_roi_extractor=extractor(regions))
    if masks:
        roi_head.update(
            mask_roi_extractor=extractor(masks),
            mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=16,
                           conv_out_channels=8, num_classes=2))
    return dict(
        type='FasterRCNN', backbone=BACKBONE, neck=FPN, roi_head=roi_head,
        train_cfg=dict(rpn=None, rcnn=None), test_cfg=dict(rpn=None, rcnn=None),
        rpn_head=dict(
            type='RPNHead', in_channels=16, feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[8], ratios=[1.0],
                strides=strides)))


def one_stage(strides=STRIDES, kind='RetinaHead', **neck):
    model = retinanet(dict(FPN, **neck)).model.to_dict()
    head = model['bbox_head']
    if kind == 'RetinaHead':
        head['anchor_generator']['strides'] = strides
    else:
        model['type'] = 'FCOS'
        model['bbox_head'] = dict(
            type=kind, num_classes=2, in_channels=16, feat_channels=8,
            stacked_convs=1, strides=strides, norm_cfg=None, regress_ranges=[
                (64 * i, 64 * i + 64) for i in range(len(strides))])
    return model


def without_neck(strides):
    """The head reads the third map of the backbone, of a stride of 16."""
    model = one_stage(strides)
    model['backbone'] = dict(BACKBONE, out_indices=(2, ))
    model['bbox_head'].update(in_channels=CHANNELS[2])
    model['neck'] = None
    return model


def guided():
    model = dict(one_stage(), train_cfg=None)
    anchors = dict(type='AnchorGenerator', ratios=[1.0], strides=SHIFTED)
    model['bbox_head'] = dict(
        type='GARetinaHead', num_classes=2, in_channels=16, feat_channels=16,
        stacked_convs=1, deform_groups=1,
        approx_anchor_generator=dict(
            anchors, octave_base_scale=4, scales_per_octave=3),
        square_anchor_generator=dict(anchors, scales=[4]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'))
    return model


def segmentor(*indices, kind='mmseg.FCNHead', **head):
    heads = [
        dict(type=kind, in_channels=16, channels=8, num_classes=2, in_index=i,
             num_convs=1, norm_cfg=dict(type='BN'), **head) for i in indices]
    return dict(
        type='mmseg.EncoderDecoder', backbone=dict(BACKBONE), decode_head=heads[0],
        neck=dict(FPN, num_outs=4), auxiliary_head=heads[1:],
        train_cfg=dict(), test_cfg=dict(mode='whole'))


def build(model):
    init_default_scope('mmdet')
    return MODELS.build(ConfigDict(copy.deepcopy(model))).eval()


def first_pass(model, height=256, width=320):
    """The first pass, on nothing but shapes."""
    with torch.device('meta'):
        model = build(model) if isinstance(model, dict) else model.to('meta')
        watch_strides(model)
        part = getattr(model, 'student', model)
        part.extract_feat(torch.empty(1, 3, height, width))
    return model


WRONG = {
    'one map fewer': (
        one_stage(num_outs=4), 'bbox_head: AnchorGenerator',
        '5 levels of strides [4, 8, 16, 32, 64] for 4 maps of strides [4, 8, 16,'
        ' 32]'),
    'one map more': (
        one_stage(STRIDES[:4]), 'bbox_head: AnchorGenerator',
        '4 levels of strides [4, 8, 16, 32] for 5 maps of strides [4, 8, 16, 32,'
        ' 64]'),
    'anchors of other strides': (
        one_stage(SHIFTED), 'bbox_head: AnchorGenerator',
        '5 levels of strides [8, 16, 32, 64, 128] for 5 maps of strides [4, 8, '
        '16, 32, 64]'),
    'a single other stride': (
        one_stage([4, 8, 16, 32, 32]), 'bbox_head: AnchorGenerator',
        'strides [4, 8, 16, 32, 32] for'),
    'strides of a single axis': (
        one_stage([4, 8, 16, 32, (64, 32)]), 'bbox_head: AnchorGenerator',
        'strides [4, 8, 16, 32, (32, 64)] for'),
    'points of other strides': (
        one_stage(SHIFTED, 'FCOSHead'), 'bbox_head: MlvlPointGenerator',
        'strides [8, 16, 32, 64, 128] for'),
    'points of fewer levels': (
        one_stage(STRIDES[:3], 'FCOSHead'), 'bbox_head: MlvlPointGenerator',
        '3 levels of strides [4, 8, 16] for 5 maps'),
    'proposals of other strides': (
        two_stage(SHIFTED), 'rpn_head: AnchorGenerator', 'for 5 maps'),
    'regions of other strides': (
        two_stage(regions=SHIFTED[:4]),
        'roi_head.bbox_roi_extractor.featmap_strides', 'for 5 maps'),
    'regions of more levels': (
        two_stage(regions=[*STRIDES, 128]),
        'roi_head.bbox_roi_extractor.featmap_strides', '6 levels of'),
    'masks of other strides': (
        two_stage(masks=SHIFTED[:2]),
        'roi_head.mask_roi_extractor.featmap_strides', 'for 5 maps'),
    'guided anchors': (
        guided(), 'bbox_head: AnchorGenerator',
        'strides [8, 16, 32, 64, 128] for'),
    'no neck': (
        without_neck([32]), 'bbox_head: AnchorGenerator',
        '1 levels of strides [32] for 1 maps of strides [16]'),
    'a dilated backbone': (
        dict(one_stage(), backbone=dict(
            BACKBONE, depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
             neck=dict(FPN, in_channels=[32, 64, 128, 256])),
        'bbox_head: AnchorGenerator', 'maps of strides [4, 8, 16, 16, 32]'),
    "a student's": (
        wrapped(retinanet(dict(FPN, num_outs=4))).model.to_dict(),
        'bbox_head: AnchorGenerator', 'for 4 maps'),
}


@pytest.mark.parametrize('case', WRONG)
def test_both_sides_are_named(case):
    model, name, words = WRONG[case]
    with pytest.raises(ValueError) as caught:
        first_pass(model)
    message = str(caught.value)
    giver = 'ResNet' if case == 'no neck' else 'FPN'
    assert message.startswith(f'{name} must fit the maps of {giver}, got ')
    assert words in message


@pytest.mark.parametrize('indices, name', [
    ([4], 'decode_head.in_index'), ([0, 4], 'auxiliary_head.0.in_index'),
    ([3, -5], 'auxiliary_head.0.in_index')])
def test_indices_beyond_the_maps_are_named(indices, name):
    with pytest.raises(ValueError, match=f'{name} must index the maps of FPN, '
                       f'got {indices[-1]} for 4 maps'):
        first_pass(segmentor(*indices))


def test_every_index_counts():
    model = segmentor([0, 1, 2, 5], kind='mmseg.FPNHead',
                      feature_strides=[4, 8, 16, 32])
    model['decode_head'].pop('num_convs')
    model['decode_head']['in_channels'] = [16] * 4
    with pytest.raises(ValueError, match='got 5 for 4 maps'):
        first_pass(model)


RIGHT = {
    'RetinaNet': one_stage(),
    'FCOS': one_stage(kind='FCOSHead'),
    'Mask R-CNN': two_stage(masks=STRIDES[:4]),
    'regions of fewer levels': two_stage(regions=[4, 8]),
    'no neck': without_neck([16]),
    'segmentor': segmentor(-1, 0, 3),
}


@pytest.mark.parametrize('size', [
    (256, 320), (800, 1333), (97, 61), (33, 500), (1, 1), (75, 1000)])
@pytest.mark.parametrize('case', RIGHT)
def test_what_fits_is_taken(case, size):
    first_pass(RIGHT[case], *size)


@pytest.mark.parametrize('size', [(64, 64), (800, 1333), (97, 61)])
def test_few_pixels_tell(size):
    with pytest.raises(ValueError, match='strides'):
        first_pass(one_stage(SHIFTED), *size)


# A head of each kind: several extractors, features of its own, one level, points,
# generators of several names, strides of no power of two, heads of mmseg.
HOSTS = [
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
    'mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
    'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
]


@pytest.mark.parametrize('name', HOSTS)
def test_no_config_of_a_host_is_refused(name):
    cfg = load_config(name)
    with torch.device('meta'):
        model = build_model(cfg).eval()
        watch_strides(model)
        model.extract_feat(torch.empty(1, 3, 256, 320))
        watch = next(iter(model.backbone._forward_hooks.values())).__self__
    assert watch.done


def test_watched_models_are_copied_and_pickled():
    """As an average of the weights is made, and processes are sent models."""
    model = build(one_stage(SHIFTED))
    watch_strides(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match='strides'):
            twin.extract_feat(torch.zeros(1, 3, 64, 64))


def test_only_the_first_pass_is_looked_at():
    model = build(one_stage(num_outs=5))
    watch_strides(model)
    model.extract_feat(torch.zeros(1, 3, 64, 64))
    model.neck.num_outs = 4
    assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 4
