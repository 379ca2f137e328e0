"""Shipped detectors and segmentors at a small size, with data, trained for one step.

The result is what a user has after training: a config file, a checkpoint of
mmengine's runner, and images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from helpers.runs import alone
from helpers.shipped_configs import CONFIGS
from helpers.synthetic_data import write_coco_squares

SIDE = 64  # of the images, pixels
BACKBONE = dict(depth=18, base_channels=16, init_cfg=None)
NECK = dict(in_channels=[16, 32, 64, 128], out_channels=32)


def two_stage(masks: bool = False) -> dict:
    """Return the settings of Faster or Mask R-CNN behind a neck of 32 channels."""
    roi_head = dict(bbox_roi_extractor=dict(out_channels=32),
                    bbox_head=dict(in_channels=32, fc_out_channels=128))
    if masks:
        roi_head.update(
            mask_roi_extractor=dict(out_channels=32),
            mask_head=dict(in_channels=32, conv_out_channels=32, num_convs=1))
    return dict(
        rpn_head=dict(in_channels=32, feat_channels=32), roi_head=roi_head,
        train_cfg=dict(rpn_proposal=dict(max_per_img=100)),
        test_cfg=dict(rpn=dict(max_per_img=100)))


DETECTORS = {
    'fpt/retinanet_r50_fpt_1x_coco.py': dict(
        backbone=BACKBONE, neck=NECK,
        bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1,
                       num_classes=1),
        test_cfg=dict(score_thr=0.)),
    # with SyncBN in the backbone
    'lambda_resnet/faster-rcnn_lambda-r50_fpt_1x_coco.py': dict(
        backbone=dict(depth='26t'), neck=dict(out_channels=32),
        rpn_head=dict(in_channels=32, feat_channels=32),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=32),
            bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=1)),
        test_cfg=dict(rcnn=dict(score_thr=0.))),
}
_SEGMENTOR = dict(
    pretrained=None, data_preprocessor=dict(size=(SIDE, SIDE)), backbone=BACKBONE,
    decode_head=dict(in_channels=[32] * 4, channels=16))
SEGMENTORS = {
    'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py': dict(_SEGMENTOR, neck=NECK),
    'fpt/fcn_r101-d8_ufp-lgt-rt_4xb2-80k_cityscapes-769x769.py': dict(
        _SEGMENTOR, neck=dict(NECK, embed_channels=16),
        auxiliary_head=dict(in_channels=32, in_index=3, channels=16),
        test_cfg=dict(crop_size=(48, 48), stride=(32, 32))),
}
LOADER = dict(num_workers=0, persistent_workers=False)
NO_VALIDATION = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)


@dataclass(frozen=True)
class Trained:
    """Paths of the config, the last checkpoint, and the images of the data."""

    config: str
    checkpoint: str
    images: list[str]


def write_config(name: str, folder: Path) -> Path:
    """Write data, and a config of DETECTORS or SEGMENTORS for one step."""
    write = _write_detection if name in DETECTORS else _write_segmentation
    settings = {**write(folder / 'data'), **NO_VALIDATION}
    config = folder / 'mine.py'
    config.write_text('\n'.join(
        [f'_base_ = {str(CONFIGS / name)!r}',
         f'model = {(DETECTORS.get(name) or SEGMENTORS[name])!r}'] +
        [f'{key} = {value!r}' for key, value in settings.items()]))
    return config


def train(name: str, folder: Path) -> Trained:
    """Train a config of DETECTORS or SEGMENTORS for one step."""
    config = write_config(name, folder)
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'run')
    cfg.log_level = 'ERROR'
    cfg.randomness = dict(seed=0)
    with alone():
        Runner.from_cfg(cfg).train()
    checkpoint, = (folder / 'run').glob('*_1.pth')
    images = [str(path) for path in sorted((folder / 'data').rglob('*.png'))
              if 'label' not in path.name]
    return Trained(str(config), str(checkpoint), images)


def _write_detection(root: Path) -> dict:
    write_coco_squares(root, count=2, size=SIDE)
    load = dict(type='LoadImageFromFile')
    resize = dict(type='Resize', scale=(SIDE + 32, SIDE + 32), keep_ratio=True)
    boxes = dict(type='LoadAnnotations', with_bbox=True)
    pack = dict(type='PackDetInputs')
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    data = dict(
        data_root=f'{root}/', ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('square', ), palette=[(220, 20, 60)]))
    return dict(
        train_dataloader=dict(
            LOADER, dataset=dict(data, pipeline=[load, boxes, resize, pack])),
        test_dataloader=dict(LOADER, dataset=dict(
            data, pipeline=[load, resize, boxes, dict(pack, meta_keys=keys)])),
        test_evaluator=dict(ann_file=f'{root}/annotations.json'),
        train_cfg=dict(max_epochs=1))


def _write_segmentation(root: Path) -> dict:
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for i in range(2):
            image = generator.integers(0, 255, (SIDE, SIDE + 16, 3), np.uint8)
            labels = generator.integers(0, 19, (4, 5), np.uint8)
            labels = labels.repeat(16, 0).repeat(16, 1)
            for kind, suffix, pixels in (('leftImg8bit', 'leftImg8bit', image),
                                         ('gtFine', 'gtFine_labelTrainIds', labels)):
                path = root / kind / split / 'town' / f'{i}_{suffix}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
    load, labels, pack = (dict(type=name) for name in (
        'LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'))
    crop = dict(type='RandomCrop', crop_size=(SIDE, SIDE))
    resize = dict(type='Resize', scale=(96, 72), keep_ratio=True)
    pipeline = [load, resize, labels, pack]
    return dict(
        train_dataloader=dict(LOADER, dataset=dict(
            data_root=str(root), pipeline=[load, labels, crop, pack])),
        # inference_model reads test_pipeline, the inferencer that of the data
        test_pipeline=pipeline,
        test_dataloader=dict(
            LOADER, dataset=dict(data_root=str(root), pipeline=pipeline)),
        train_cfg=dict(max_iters=1),
        default_hooks=dict(checkpoint=dict(interval=1)))
