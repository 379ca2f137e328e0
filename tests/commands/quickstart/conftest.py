"""The quickstart's tasks at sizes for tests, on synthetic tiles."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fpt_plugin.commands.quickstart import detection, segmentation
from fpt_plugin.commands.quickstart.command import TASKS
from fpt_plugin.commands.quickstart.trees import _CocoSet

CONFIGS = Path(__file__).parents[3] / 'configs'


def tile(i):
    """A bright square on a dark tile."""
    image = np.random.default_rng(i).integers(0, 80, (64, 64, 3), np.uint8)
    image[20:44, 8 + 4 * i:32 + 4 * i] += 150
    return image


@pytest.fixture
def derive(tmp_path, monkeypatch):
    """Replace a task's config by a smaller one derived from it."""

    def write(task, attribute, text):
        path = tmp_path / f'{task}-{attribute}.py'
        base = CONFIGS / getattr(TASKS[task], attribute)
        path.write_text(f'_base_ = {str(base)!r}\n{text}')
        monkeypatch.setattr(TASKS[task], attribute, str(path))

    return write


@pytest.fixture
def small(tmp_path, derive, monkeypatch):
    """Prepare the detection task."""
    for name in ('train', 'val'):
        coco = _CocoSet(tmp_path / 'data' / 'trees', name)
        for i in range(2):
            boxes = np.array([[8 + 4 * i, 20, 32 + 4 * i, 44]], float)
            coco.add(f'{i}.png', tile(i), boxes)
        coco.save()
    derive('detection', 'config', """
model = dict(backbone=dict(init_cfg=None))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detection, 'prepare_mobilenet_v2', lambda *_: None)
    return tmp_path


@pytest.fixture
def small_segmentation(tmp_path, derive, monkeypatch):
    """Prepare the segmentation task; the second image has other labels."""
    for root, split, count in (('nuclei', 'train', 2), ('nuclei', 'val', 2),
                               ('nuclei-stroma', 'test', 1)):
        for i in range(count):
            labels = np.zeros((64, 64), np.uint8)
            labels[20:32 if split == 'test' else 44, 8 + 4 * i:32 + 4 * i] = 2
            for kind, pixels in (('images', tile(i)), ('labels', labels)):
                folder = tmp_path / 'data' / root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f'{i}.png'), pixels)
    for attribute in ('config', 'ufp_config'):
        derive('segmentation', attribute, """
model = dict(backbone=dict(init_cfg=None, norm_eval=False),
             data_preprocessor=dict(size=(64, 64)))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segmentation, 'prepare_mobilenet_v2',
                        lambda *_, **__: None)
    return tmp_path


@pytest.fixture
def small_pretraining(small, derive):
    """Prepare the pre-training task: three steps of a tiny backbone per epoch."""
    backbone = dict(embed_dims=8, num_heads=(1, 1, 1, 1), depths=(2, 1, 1, 1))
    derive('pretraining', 'config', f"""
model = dict(backbone=dict({backbone}), decoder=dict(embed_dims=16))
pipeline = _base_.pipeline
pipeline[1].scale = 64
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (64, 64)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(times=3, dataset=dict(pipeline=pipeline)))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
""")
    derive('pretraining', 'detector', f"""
model = dict(backbone=dict({backbone}), neck=dict(in_channels=[8, 16, 32, 64]))
""")
    return small
