"""DETRs, and a detector in bfloat16, learn from the quickstart's images."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.runs import logged_losses, train, validations
from helpers.shipped_configs import CONFIGS, build
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from fpt_plugin.commands.quickstart.mobilenet import prepare_mobilenet_v2
from fpt_plugin.commands.quickstart.trees import prepare_trees

TREES = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tiles(tmp_path_factory) -> tuple[str, str]:
    """Prepare data and weights, from local packages if there are any."""
    root = tmp_path_factory.mktemp('data')
    packages = CONFIGS.parent / 'data' / 'packages'
    cache = packages if packages.is_dir() else root / 'packages'
    return (f'{prepare_trees(root / "trees", cache)}/',
            str(prepare_mobilenet_v2(root / 'mobilenet_v2.pth', cache)))


@pytest.mark.parametrize('neck', ['fpt', 'fpt-encoder'])
def test_detrs_find_the_trees(neck, tiles, tmp_path):
    """Train on one tile, with FPT before the encoder and in its place."""
    steps, (data, weights) = 100, tiles
    config = f'quickstart/deformable-detr_mobilenet-v2_{neck}_four-tiles.py'
    work_dir = train(
        str(CONFIGS / config), tmp_path, 'randomness.seed=0',
        f'train_cfg.max_epochs={steps}', f'train_cfg.val_interval={steps}',
        f'param_scheduler.1.T_max={steps}', f'param_scheduler.1.end={steps}',
        f'default_hooks.checkpoint.interval={steps + 1}',
        'default_hooks.checkpoint.save_last=False',
        f'model.backbone.init_cfg.checkpoint={weights}',
        *(option for split in ('train', 'val') for option in (
            f'{split}_dataloader.dataset.indices=[2]',
            f'{split}_dataloader.dataset.data_root={data}')))
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
    data = cfg.train_dataloader.dataset
    data.data_root, cfg.model.backbone.init_cfg.checkpoint = tiles
    for step in data.pipeline:
        if step.type == 'Resize':
            step.scale = (128, 128)
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
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
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
