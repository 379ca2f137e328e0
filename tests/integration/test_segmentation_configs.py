"""The segmentation configs of FPT: heads, crops, data and where they start."""

from __future__ import annotations

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers.shipped_configs import ALL, CONFIGS, build, folder, load, load_host
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from fpt_plugin import UFP, LocalGroundingTransformer

SEGMENTORS = [
    name for name in ALL
    if folder(name) == 'fpt' and re.search(r'-\d+x\d+\.py$', name)
]
DILATED = 'fpt/fcn_r101-d8_ufp-fpt_'
CITYSCAPES = f'{DILATED}4xb2-80k_cityscapes-769x769.py'
LIP = f'{DILATED}4xb4-160k_lip-473x473.py'


def listed(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_the_parts_fit(name):
    """Heads the neck and the data, backbone and crops the file's name."""
    cfg = load(name)
    resnet = re.search(r'_r(\d+)', name)
    if resnet:
        depth = resnet[1]
        assert cfg.model.backbone.depth == int(depth)
        assert Config.fromfile(CONFIGS / name).model.pretrained == (
            f'open-mmlab://resnet{depth}_v1c')
    # The hosts' transformers read numbers off tensors when they are built.
    with torch.device('meta' if resnet else 'cpu'):
        model = build(cfg)
    heads = [cfg.model.decode_head]
    heads += filter(None, [cfg.model.get('auxiliary_head')])
    for head in heads:
        indices = listed(head.in_index)
        assert listed(head.in_channels) == [256] * len(indices)
        assert max(indices) < model.neck.num_outs == 4
    assert model.neck.out_channels == 256
    assert len(listed(heads[0].in_index)) == 4
    from mmseg.registry import DATASETS
    data = DATASETS.get(cfg.val_dataloader.dataset.type)
    assert {head.num_classes for head in heads} == {
        len(data.METAINFO['classes'])}

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
def test_the_papers_preset(name):
    """One neck for all data, and the values that training starts from."""
    cfg = load(name)
    assert cfg.model.neck == load(CITYSCAPES).model.neck
    assert cfg.model.backbone.depth == 101
    assert cfg.model.backbone.dilations == (1, 1, 2, 4)
    with torch.device('meta'):
        model = build(cfg)
    neck = model.neck
    assert isinstance(neck.pyramid, UFP)
    assert len(neck.grounding_transformers) == 6
    for layer in neck.grounding_transformers.values():
        assert isinstance(layer, LocalGroundingTransformer)
        assert layer.window == 5
    assert neck.embed_channels == 256
    assert [drop.block_size for drop in neck.drop_blocks] == [3] * 4
    assert model.decode_head.in_channels == 4 * 256

    optimizer, (policy, ) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.lr, optimizer.weight_decay) == (
        (0.02, 1e-4) if 'ade20k' in name else (0.01, 5e-4))
    assert (policy.type, policy.power) == ('PolyLR', 0.9)


# -------------------------------------------------------------------- running


@pytest.mark.parametrize('name', [
    'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py',
    'fpt/sem-fpn_r50_fpt_4xb4-160k_ade20k-512x512.py'
])
@torch.no_grad()
def test_starts_as_semantic_fpn(name):
    """With its checkpoint, initialised or not: every digit, at an odd size."""
    plain = build(load_host(name)).eval()
    for module in plain.modules():  # as if it were trained
        if isinstance(module, nn.SyncBatchNorm):
            nn.init.uniform_(module.running_mean, -.1, .1)
            nn.init.uniform_(module.running_var, .5, 2)
    image = torch.randn(1, 3, 97, 131)
    meta = [dict(img_shape=(97, 131))]
    expected = plain.encode_decode(image, meta)
    assert expected.isfinite().all() and expected.std() > 0
    ours = build(load(name)).eval()
    for start in (lambda: None, ours.init_weights):
        start()
        keys = ours.load_state_dict(plain.state_dict(), strict=False)
        assert not keys.unexpected_keys
        assert torch.equal(ours.encode_decode(image, meta), expected)
    ours.neck.fusions[0].out_conv.weight.add_(1e-3)
    assert not torch.equal(ours.encode_decode(image, meta), expected)


@torch.no_grad()
def test_slides_over_an_image():
    cfg = load(CITYSCAPES)
    cfg.model.test_cfg.update(crop_size=(65, 65), stride=(43, 43))
    model = build(cfg).eval()
    logits = model.inference(
        torch.randn(1, 3, 65, 107),
        [dict(img_shape=(65, 107), ori_shape=(65, 107))])
    assert logits.shape == (1, 19, 65, 107)
    assert logits.isfinite().all() and logits.std() > 0


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
    """In a process where nobody has imported mmdet."""
    run = subprocess.run([sys.executable, '-c', FROM_MMSEG],
                         capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == 'mmdet.models.layers.dropblock'


# ----------------------------------------------------------------------- data


@pytest.fixture
def lip(tmp_path):
    """A person whose left arm is on the left half, the right on the right."""
    labels = np.full((90, 60), 14, np.uint8)
    labels[:, 30:] = 15
    for split in ('train', 'val'):
        for kind, image in (('images', np.stack([labels] * 3, -1) * 9),
                            ('segmentations', labels)):
            path = tmp_path / f'{split}_{kind}'
            path.mkdir()
            suffix = 'jpg' if kind == 'images' else 'png'
            cv2.imwrite(str(path / f'77_471474.{suffix}'), image)
    return tmp_path


@pytest.mark.parametrize('flips', [0, 1])
def test_left_and_right_limbs(lip, flips):
    """A mirrored left arm is a right one."""
    cfg = load(LIP)
    init_default_scope('mmseg')
    from mmseg.registry import DATASETS
    train, val = (
        loader.dataset for loader in (cfg.train_dataloader, cfg.val_dataloader))
    for data in (train, val):
        data.data_root = str(lip)
    for step in train.pipeline:
        if step.type == 'RandomFlip':
            step.prob = float(flips)
        if step.type == 'RandomResize':
            step.ratio_range = (1, 1)
    train, val = DATASETS.build(train), DATASETS.build(val)
    assert (len(train), len(val)) == (1, 1)
    sample = train[0]
    label = sample['data_samples'].gt_sem_seg.data[0]
    assert sample['data_samples'].flip == bool(flips)
    assert label.shape == sample['inputs'].shape[1:] == (473, 315)
    assert (label[:, :150] == 14).all() and (label[:, 165:] == 15).all()
    sample = val[0]
    assert sample['inputs'].shape[1:] == (473, 315)
    assert sample['data_samples'].gt_sem_seg.shape == (90, 60)


def test_limbs_are_not_mirrored_in_testing():
    """The logits of a left limb would be averaged with those of the right."""
    pipeline = str(load(LIP).tta_pipeline)
    assert 'Resize' in pipeline and 'Flip' not in pipeline
