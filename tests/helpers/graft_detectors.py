"""Small detectors of mmdet for grafts."""

from __future__ import annotations

import copy

from mmengine.config import Config

# A ResNet-18 of an eighth of the width: maps of 8, 16, 32 and 64 channels.
CHANNELS = [8, 16, 32, 64]
BACKBONE = dict(
    type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_eval=False)
FPN = dict(type='FPN', in_channels=CHANNELS, out_channels=16, num_outs=5)
BN = dict(type='BN')

NECKS = {
    'FPN': FPN,
    'FPN from C3': dict(
        FPN, start_level=1, add_extra_convs='on_output', norm_cfg=BN),
    'PAFPN': dict(FPN, type='PAFPN'),
    'NASFPN': dict(FPN, type='NASFPN', stack_times=1, start_level=1, norm_cfg=BN),
    'HRFPN': dict(type='HRFPN', in_channels=CHANNELS, out_channels=16),
    'ChannelMapper': dict(
        FPN, type='ChannelMapper', norm_cfg=dict(type='GN', num_groups=4)),
    'FPN and BFP': [FPN, dict(type='BFP', in_channels=16, num_levels=5)],
    'scoped': dict(FPN, type='mmdet.PAFPN'),
}


def retinanet(neck: dict | list | None, levels: int = 5) -> Config:
    """Return a RetinaNet with a neck of 16 channels and ``levels`` maps."""
    return config(dict(
        type='RetinaNet',
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255],
            pad_size_divisor=32),
        backbone=BACKBONE, neck=neck,
        bbox_head=dict(
            type='RetinaHead', num_classes=2, in_channels=16, stacked_convs=1,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', octave_base_scale=4,
                scales_per_octave=1, ratios=[1.0],
                strides=[4 * 2**i for i in range(levels)]),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss')),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4,
                min_pos_iou=0, ignore_iof_thr=-1),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=dict(
            nms_pre=100, min_bbox_size=0, score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)))


def config(model: dict, **more) -> Config:
    return Config(dict(
        default_scope='mmdet', model=copy.deepcopy(model),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(
            type='SGD', lr=0.01, weight_decay=1e-4)), **more))


def wrapped(cfg: Config) -> Config:
    """Put a detector into SoftTeacher, as student and teacher."""
    return config(dict(
        type='SoftTeacher', detector=cfg.model.to_dict(),
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor',
            data_preprocessor=cfg.model.data_preprocessor.to_dict()),
        semi_train_cfg=dict(freeze_teacher=True, sup_weight=1.0, unsup_weight=4.0),
        semi_test_cfg=dict(predict_on='teacher')))


def write(cfg: Config, path) -> str:
    """Write a config file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(path))
    return str(path)
