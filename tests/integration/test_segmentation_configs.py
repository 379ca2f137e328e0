"""The segmentation configs of FPT: heads, crops, optimizers and limbs."""

from __future__ import annotations

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers.shipped_configs import ALL, CONFIGS, build, folder, load
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from fpt_plugin import UFP, LocalGroundingTransformer

SEGMENTORS = [name for name in ALL
              if folder(name) == 'fpt' and re.search(r'-\d+x\d+\.py$', name)]
DILATED = 'fpt/fcn_r101-d8_ufp-fpt_'
CITYSCAPES = f'{DILATED}4xb2-80k_cityscapes-769x769.py'
LIP = f'{DILATED}4xb4-160k_lip-473x473.py'


def listed(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_parts_fit(name):
    """The heads fit the neck and the data; backbone and crop fit the file name."""
    from mmseg.registry import DATASETS
    cfg = load(name)
    resnet = re.search(r'_r(\d+)', name)
    if resnet:
        assert cfg.model.backbone.depth == int(resnet[1])
        assert Config.fromfile(CONFIGS / name).model.pretrained == (
            f'open-mmlab://resnet{resnet[1]}_v1c')
    # The transformers of mmseg read values of tensors in their constructors.
    with torch.device('meta' if resnet else 'cpu'):
        model = build(cfg)
    heads = [cfg.model.decode_head]
    heads += filter(None, [cfg.model.get('auxiliary_head')])
    classes = DATASETS.get(cfg.val_dataloader.dataset.type).METAINFO['classes']
    for head in heads:
        indices = listed(head.in_index)
        assert listed(head.in_channels) == [256] * len(indices)
        assert max(indices) < model.neck.num_outs == 4
        assert head.num_classes == len(classes)
    assert model.neck.out_channels == 256
    assert len(listed(heads[0].in_index)) == 4

    crop = tuple(map(int, re.search(r'(\d+)x(\d+)\.py$', name).groups()))
    train = cfg.train_dataloader.dataset
    pipeline = train.get('pipeline') or train.datasets[0].pipeline
    crops = [cfg.model.data_preprocessor.size]
    crops += [step.crop_size for step in pipeline if step.type == 'RandomCrop']
    assert list(map(tuple, crops)) == [crop, crop]
    slides = cfg.model.test_cfg.mode == 'slide'
    assert slides == (crop == (769, 769))
    if slides:
        assert tuple(cfg.model.test_cfg.crop_size) == crop
    norms = [m for m in model.modules() if hasattr(m, 'running_mean')]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)


@pytest.mark.parametrize(
    'name', [name for name in SEGMENTORS if name.startswith(DILATED)])
def test_papers_preset(name):
    """All data sets have the same neck; the optimizers have the paper's values."""
    cfg = load(name)
    assert cfg.model.neck == load(CITYSCAPES).model.neck
    assert cfg.model.backbone.depth == 101
    assert cfg.model.backbone.dilations == (1, 1, 2, 4)
    with torch.device('meta'):
        model = build(cfg)
    neck = model.neck
    assert isinstance(neck.pyramid, UFP)
    layers = neck.grounding_transformers.values()
    assert [(type(x), x.window) for x in layers] == [(LocalGroundingTransformer, 5)] * 6
    assert neck.embed_channels == 256
    assert [drop.block_size for drop in neck.drop_blocks] == [3] * 4
    assert model.decode_head.in_channels == 4 * 256
    optimizer, (policy, ) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.lr, optimizer.weight_decay) == (
        (0.02, 1e-4) if 'ade20k' in name else (0.01, 5e-4))
    assert (policy.type, policy.power) == ('PolyLR', 0.9)


FROM_MMSEG = '''
import sys
import fpt_plugin
from mmengine.registry import MODELS, init_default_scope
assert 'mmdet' not in sys.modules
init_default_scope('mmseg')
neck = MODELS.build(dict(
    type='FPT', in_channels=[8, 8], out_channels=8, num_outs=4,
    pyramid=dict(type='UFP'),
    drop_block=dict(type='mmdet.DropBlock', drop_prob=0.1, block_size=3)))
print(type(neck.drop_blocks[0]).__module__)
'''


def test_drop_block_is_found_from_mmseg():
    """The process has not imported mmdet before."""
    run = subprocess.run([sys.executable, '-c', FROM_MMSEG],
                         capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == 'mmdet.models.layers.dropblock'


@pytest.mark.parametrize('flips', [0, 1])
def test_mirrored_limbs_change_their_labels(tmp_path, flips):
    """The left arm is on the left half of a LIP image, mirrored or not."""
    labels = np.full((90, 60), 14, np.uint8)
    labels[:, 30:] = 15
    for split in ('train', 'val'):
        for folder_name, image in (('images/77_471474.jpg', np.stack([labels] * 3, -1)),
                                   ('segmentations/77_471474.png', labels)):
            path = tmp_path / f'{split}_{folder_name}'
            path.parent.mkdir()
            cv2.imwrite(str(path), image)
    cfg = load(LIP)
    init_default_scope('mmseg')
    from mmseg.registry import DATASETS
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    train.data_root = val.data_root = str(tmp_path)
    for step in train.pipeline:
        if step.type == 'RandomFlip':
            step.prob = float(flips)
        if step.type == 'RandomResize':
            step.ratio_range = (1, 1)
    (sample, ), (tested, ) = DATASETS.build(train), DATASETS.build(val)
    label = sample['data_samples'].gt_sem_seg.data[0]
    assert sample['data_samples'].flip == bool(flips)
    assert label.shape == sample['inputs'].shape[1:] == (473, 315)
    assert (label[:, :150] == 14).all() and (label[:, 165:] == 15).all()
    assert tested['inputs'].shape[1:] == (473, 315)
    assert tested['data_samples'].gt_sem_seg.shape == (90, 60)


def test_limbs_are_not_mirrored_in_testing():
    """Logits of a left limb must not be averaged with those of the right one."""
    pipeline = str(load(LIP).tta_pipeline)
    assert 'Resize' in pipeline and 'Flip' not in pipeline
