"""Small detectors and segmentors of the shipped configs, trained for a step.

What a user has after training: a config, a checkpoint of mmengine's runner,
and images.
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
DETECTORS = {
    'fpt/retinanet_r50_fpt_1x_coco.py':
    dict(
        backbone=BACKBONE,
        neck=NECK,
        bbox_head=dict(
            in_channels=32, feat_channels=32, stacked_convs=1, num_classes=1),
        test_cfg=dict(score_thr=0.)),
    # with SyncBN in the backbone
    'lambda_resnet/faster-rcnn_lambda-r50_fpt_1x_coco.py':
    dict(
        backbone=dict(depth='26t'),
        neck=dict(out_channels=32),
        rpn_head=dict(in_channels=32, feat_channels=32),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=32),
            bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=1)),
        test_cfg=dict(rcnn=dict(score_thr=0.))),
}
SEGMENTORS = {
    'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py':
    dict(
        pretrained=None,
        data_preprocessor=dict(size=(SIDE, SIDE)),
        backbone=BACKBONE,
        neck=NECK,
        decode_head=dict(in_channels=[32] * 4, channels=16)),
    'fpt/fcn_r101-d8_ufp-lgt-rt_4xb2-80k_cityscapes-769x769.py':
    dict(
        pretrained=None,
        data_preprocessor=dict(size=(SIDE, SIDE)),
        backbone=BACKBONE,
        neck=dict(NECK, embed_channels=16),
        decode_head=dict(in_channels=[32] * 4, channels=16),
        auxiliary_head=dict(in_channels=32, in_index=3, channels=16),
        test_cfg=dict(crop_size=(48, 48), stride=(32, 32))),
}
LOADER = dict(num_workers=0, persistent_workers=False)
NO_VALIDATION = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)


@dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes:
        config: The user's config file.
        checkpoint: The runner's last checkpoint.
        images: The data's images.
    """

    config: str
    checkpoint: str
    images: list[str]


def write_config(name: str, folder: Path) -> Path:
    """Write a shipped config at a small size, for one step, and its data.

    Args:
        name: A key of DETECTORS or SEGMENTORS.
        folder: Gets data and the config.
    """
    write = _write_detection if name in DETECTORS else _write_segmentation
    lines = write(folder / 'data')
    config = folder / 'mine.py'
    model = DETECTORS.get(name) or SEGMENTORS[name]
    config.write_text('\n'.join(
        [f'_base_ = {str(CONFIGS / name)!r}', f'model = {model!r}'] +
        [f'{key} = {value!r}' for key, value in {**lines, **NO_VALIDATION}.items()]))
    return config


def train(name: str, folder: Path) -> Trained:
    """Train a shipped config at a small size for one step.

    Args:
        name: A key of DETECTORS or SEGMENTORS.
        folder: Gets data, the config and the run.
    """
    config = write_config(name, folder)
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'run')
    cfg.log_level = 'ERROR'
    with alone():
        Runner.from_cfg(cfg).train()
    checkpoint, = (folder / 'run').glob('*_1.pth')
    images = sorted((folder / 'data').rglob('*.png'))
    return Trained(
        str(config), str(checkpoint),
        [str(path) for path in images if 'label' not in path.name])


def _write_detection(root: Path) -> dict:
    write_coco_squares(root, count=2, size=SIDE)
    load = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(SIDE + 32, SIDE + 32), keep_ratio=True),
    ]
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    data = dict(
        data_root=f'{root}/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('square', ), palette=[(220, 20, 60)]))
    test = dict(
        LOADER,
        dataset=dict(
            data,
            pipeline=[
                load[0], load[2], load[1],
                dict(type='PackDetInputs', meta_keys=keys)
            ]))
    evaluator = dict(ann_file=f'{root}/annotations.json')
    return dict(
        train_dataloader=dict(
            LOADER,
            dataset=dict(data, pipeline=[*load,
                                         dict(type='PackDetInputs')])),
        test_dataloader=test,
        test_evaluator=evaluator,
        train_cfg=dict(max_epochs=1))


def _write_segmentation(root: Path) -> dict:
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('leftImg8bit', 'gtFine'):
            (root / kind / split / 'town').mkdir(parents=True)
        for i in range(2):
            image = generator.integers(0, 255, (SIDE, SIDE + 16, 3), np.uint8)
            labels = generator.integers(0, 19, (4, 5), np.uint8)
            labels = labels.repeat(16, 0).repeat(16, 1)
            stem = f'town/{i}'
            cv2.imwrite(
                str(root / 'leftImg8bit' / split / f'{stem}_leftImg8bit.png'),
                image)
            cv2.imwrite(
                str(root / 'gtFine' / split / f'{stem}_gtFine_labelTrainIds.png'),
                labels)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(96, 72), keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs')
    ]
    return dict(
        train_dataloader=dict(
            LOADER,
            dataset=dict(
                data_root=str(root),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations'),
                    dict(type='RandomCrop', crop_size=(SIDE, SIDE)),
                    dict(type='PackSegInputs')
                ])),
        # inference_model reads this one, the inferencer that of the data
        test_pipeline=pipeline,
        test_dataloader=dict(
            LOADER, dataset=dict(data_root=str(root), pipeline=pipeline)),
        train_cfg=dict(max_iters=1),
        default_hooks=dict(checkpoint=dict(interval=1)))
