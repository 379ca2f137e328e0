"""A hundred iterations of the quickstart's detector in mixed precision.

mmengine's AmpOptimWrapper refuses a CPU, and so do mmcv's nms and roi_align in
bfloat16: the loop is a plain one, backbone and neck run under autocast, and the
heads get float32.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers.shipped_configs import CONFIGS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from fpt_plugin.commands.quickstart.mobilenet import prepare_mobilenet_v2
from fpt_plugin.commands.quickstart.trees import prepare_trees

SIDE = 128
STEPS = 100
MEAN_OF = 10  # steps at either end
QUICKSTART = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'


@pytest.fixture
def config(tmp_path) -> Config:
    """On real tiles, shrunk, from ImageNet weights."""
    packages = CONFIGS.parent / 'data' / 'packages'
    cache = packages if packages.is_dir() else tmp_path / 'packages'
    cfg = Config.fromfile(CONFIGS / QUICKSTART)
    cfg.model.backbone.init_cfg.checkpoint = str(
        prepare_mobilenet_v2(tmp_path / 'mobilenet_v2.pth', cache))
    loader = cfg.train_dataloader
    loader.dataset.data_root = f'{prepare_trees(tmp_path / "trees", cache)}/'
    for step in loader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (SIDE, SIDE)
    return cfg


def in_bfloat16(detector) -> list[torch.dtype]:
    """Run backbone and neck under autocast; the types that the neck returns."""
    extract_feat, types = detector.extract_feat, []

    def forward(images):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            maps = extract_feat(images)
        types.extend(x.dtype for x in maps)
        return tuple(x.float() for x in maps)

    detector.extract_feat = forward
    return types


@pytest.mark.slow
def test_the_quickstarts_detector_learns(config):
    init_default_scope(config.default_scope)
    detector = MODELS.build(config.model)
    detector.init_weights()
    detector.train()
    types = in_bfloat16(detector)
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    optimizer = build_optim_wrapper(detector, config.optim_wrapper)
    losses = []
    while len(losses) < STEPS:
        for batch in loader:
            batch = detector.data_preprocessor(batch, training=True)
            loss, _ = detector.parse_losses(detector(**batch, mode='loss'))
            optimizer.update_params(loss)
            losses.append(loss.item())
            assert math.isfinite(losses[-1]), losses
            if len(losses) == STEPS:
                break
    # P2 to P5 are FPT's; P6 is a maximum of one of them
    assert set(types) == {torch.bfloat16}
    assert all(p.isfinite().all() for p in detector.parameters())
    first, last = (sum(x) / MEAN_OF for x in (losses[:MEAN_OF],
                                              losses[-MEAN_OF:]))
    assert last < 0.8 * first, losses
