"""RestorationPretrainer from a folder of images to a checkpoint and metrics."""

from __future__ import annotations

import json

import mmcv
import numpy as np
import pytest
from helpers.pretraining_runs import disc_image, train
from helpers.restorers import PREPROCESSOR, detector_parts
from helpers.shipped_configs import CONFIGS
from mmengine.config import Config

MINI = CONFIGS / 'pretraining/restoration_faster-rcnn_mobilenet-v2_fpt_1xb8-2k_trees.py'


def draw_images(folder, count=4):
    """Write images of several sizes; one is grey, one has 16 bits."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = disc_image((60 + 8 * i, 72), rng)
        if i == 1:
            image = image[..., 0]
        if i == 2:
            image = image.astype(np.uint16) * 257
        mmcv.imwrite(image, str(folder / f'{i}.png'))
    return folder


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The file of the shipped config with a small model."""
    folder = tmp_path_factory.mktemp('restoration')
    images = str(draw_images(folder / 'images'))
    cfg = Config.fromfile(MINI)
    cfg.model = dict(
        type=cfg.model.type, data_preprocessor=PREPROCESSOR,
        tail=dict(channels=16), **detector_parts('FPT'))
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.train_dataloader.dataset.data_root = images
    cfg.train_dataloader.dataset.pipeline[1].scale = (64, 48)
    cfg.val_dataloader.num_workers = 0
    for dataset in cfg.val_dataloader.dataset.datasets:
        dataset.update(data_root=images, indices=2)
    cfg.train_cfg.update(max_iters=4, val_interval=4)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.randomness = dict(seed=3)
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    runner = train(work_dir, 'randomness.seed=3', config=config)
    return work_dir, {k: v.clone() for k, v in runner.model.state_dict().items()}


def test_draws_pictures_and_computes_metrics(trained):
    work_dir, _ = trained
    picture = mmcv.imread(str(work_dir / 'reconstructions/iter_4.png'))
    assert picture.shape == (2 * 68, 3 * 52, 3)
    clean, degraded = picture[:64, :48], picture[:64, 52:100]
    assert not np.array_equal(clean, degraded)
    lines = [json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json')
             for line in path.read_text().splitlines()]
    found = next(line for line in lines if 'PSNR' in line)
    for task in ('noise30', 'noise50', 'rain', 'sr2', 'sr3', 'sr4'):
        assert 5 < found[f'{task}/PSNR_input'] < 50
        assert abs(found[f'{task}/PSNR'] - found[f'{task}/PSNR_input']) < 5
        assert 0 < found[f'{task}/SSIM_input'] < 1


@pytest.mark.slow
def test_resumes_exactly(trained, config, tmp_path):
    train(tmp_path, 'train_cfg.max_iters=2', config=config)
    runner = train(tmp_path, 'randomness.seed=3', config=config, flags=('--resume', ))
    for name, value in runner.model.state_dict().items():
        assert np.array_equal(value, trained[1][name]), name


@pytest.mark.slow
def test_learns_to_restore(config, tmp_path):
    """Noise of sigma 50: after a few steps 3 dB better than the input."""
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset.pipeline[4].tasks = ['noise50']
    cfg.train_cfg.update(max_iters=60, val_interval=60)
    cfg.param_scheduler = None
    cfg.custom_hooks = []
    cfg.dump(tmp_path / 'config.py')
    train(tmp_path / 'work', 'randomness.seed=3', config=tmp_path / 'config.py')
    line = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text()
    found = json.loads(line.splitlines()[-1])
    assert found['noise50/PSNR'] > found['noise50/PSNR_input'] + 3
