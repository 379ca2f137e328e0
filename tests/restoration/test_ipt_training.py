"""Train IPT on a folder and evaluate it; pairs of files."""

from __future__ import annotations

import cv2
import mmcv
import numpy as np
import pytest
import torch
from helpers.pretraining_runs import disc_image, train
from helpers.shipped_configs import CONFIGS
from mmengine.config import Config
from mmengine.registry import DATASETS

import fpt_plugin  # noqa: F401


def draw(folder, names, size=(56, 60)):
    rng = np.random.default_rng(0)
    for name in names:
        mmcv.imwrite(disc_image(size, rng), str(folder / name))


@pytest.fixture
def config(tmp_path):
    """The file of the shipped mini config with a smaller model."""
    for part in ('train', 'val'):
        draw(tmp_path / 'images' / part, ['a.png', 'b.png'])
    cfg = Config.fromfile(CONFIGS / 'ipt/ipt-mini_1xb8-1k_48.py')
    cfg.model.update(channels=4, crop=12, depth=1, num_heads=3, overlap=4)
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.collate_fn.crop = 12
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'images/train')
    cfg.val_dataloader.num_workers = 0
    for dataset in cfg.val_dataloader.dataset.datasets:
        dataset.data_root = str(tmp_path / 'images/val')
    cfg.train_cfg.update(max_iters=4, val_interval=4)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.randomness = dict(seed=3)
    cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py'


def test_trains_and_evaluates(config, tmp_path):
    runner = train(tmp_path / 'work', 'randomness.seed=3', config=config)
    metrics = {key.rsplit('val/', 1)[-1]: buffer.current()
               for key, buffer in runner.message_hub.log_scalars.items()
               if key.startswith('val/')}
    for task in ('sr2', 'sr3', 'sr4', 'noise30', 'noise50', 'rain'):
        assert 0 < metrics[f'{task}/PSNR'] < metrics[f'{task}/PSNR_input'] < 60
        assert 0 < metrics[f'{task}/SSIM_input'] <= 1


def test_a_resumed_training_ends_like_an_uninterrupted_one(config, tmp_path):
    more = ['randomness.seed=3', 'val_cfg=None', 'val_dataloader=None',
            'val_evaluator=None']
    whole = train(tmp_path / 'whole', *more, config=config).model.state_dict()
    train(tmp_path / 'parts', *more, 'train_cfg.max_iters=2', config=config)
    parts = train(tmp_path / 'parts', *more, flags=('--resume', ),
                  config=config).model.state_dict()
    # A batch's task, crops and noise are drawn anew in each step.
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def pairs(root, task):
    steps = ('LoadImageFromFile', 'LoadCleanImage', 'PackImage')
    return DATASETS.build(dict(
        type='PairedImages', task=task, data_root=str(root),
        pipeline=[dict(type=step) for step in steps]))


def test_pairs_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='input must be a folder'):
        pairs(tmp_path, 'rain')
    draw(tmp_path / 'input', ['a.png', 'b.png'], (20, 24))
    draw(tmp_path / 'target', ['a.jpg', 'b.png'], (40, 48))
    data = pairs(tmp_path, 'sr2')
    assert len(data) == 2
    sample = data[0]
    assert sample['inputs'].shape == (3, 20, 24)
    assert sample['data_samples'].task == 'sr2'
    assert np.array_equal(
        sample['data_samples'].gt_img.permute(1, 2, 0),
        cv2.imread(str(tmp_path / 'target/a.jpg')))
    with pytest.raises(ValueError, match=r'must be 3 times .*\(40, 48\).*a.jpg'):
        pairs(tmp_path, 'sr3')[0]
    (tmp_path / 'target/b.png').unlink()
    with pytest.raises(ValueError, match=r"partner .* 1 have none: \['b'\]"):
        pairs(tmp_path, 'rain')
    (tmp_path / 'target/b.png').write_bytes(b'no image')
    with pytest.raises(RuntimeError, match='target.b.png is no image'):
        pairs(tmp_path, 'rain')[1]
    draw(tmp_path / 'input', ['b.jpg'])
    with pytest.raises(ValueError, match='names differ'):
        pairs(tmp_path, 'rain')
    with pytest.raises(ValueError, match='tasks must be one'):
        pairs(tmp_path, 'snow')
