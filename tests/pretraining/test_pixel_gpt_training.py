"""PixelGPT from a folder of images to a checkpoint and its evaluation."""

from __future__ import annotations

from math import log2
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from helpers.pixel_gpts import SMALL
from helpers.pretraining_runs import train
from helpers.runs import run_test
from helpers.shipped_configs import CONFIGS

from fpt_plugin import FitPaletteHook

CONFIG = CONFIGS / 'pretraining/pixel-gpt-mini_1xb4-2k_32.py'


def draw(folder, count=6):
    """Smooth images of different sizes, which few colours describe."""
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(256, size=(2, 2, 3), dtype=np.uint8)
        image = mmcv.imresize(small, (40 + 8 * i, 60), interpolation='bilinear')
        mmcv.imwrite(image, str(folder / f'{i}.png'))
    return folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return draw(tmp_path_factory.mktemp('images'))


def options(images, iterations=4):
    return [
        f'train_dataloader.dataset.data_root={images}',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_dataloader.dataset.pipeline.1.scale=8',
        'train_dataloader.dataset.pipeline.1.min_side=8',
        f'test_dataloader.dataset.data_root={images}',
        'test_dataloader.dataset.pipeline.1.scale=(10000,8)',
        'test_dataloader.dataset.pipeline.2.crop_size=8',
        f'test_evaluator.train_dataset.data_root={images}',
        'test_evaluator.train_dataset.pipeline.1.scale=8',
        'test_evaluator.train_dataset.pipeline.1.min_side=8',
        'test_evaluator.images=30',
        *(f'model.size.{key}={value}' for key, value in SMALL.items()),
        'model.image_size=8', 'model.colours=16',
        f'train_cfg.max_iters={iterations}',
        'default_hooks.checkpoint.interval=2',
        'custom_hooks.0.images=12',
        'custom_hooks.1.interval=2',
        'randomness.seed=3',
    ]


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    runner = train(work_dir, *options(images), config=CONFIG)
    return work_dir, {k: v.clone() for k, v in runner.model.state_dict().items()}


def test_one_command_trains(trained):
    work_dir, weights = trained
    saved = torch.load(work_dir / 'iter_4.pth', weights_only=False)['state_dict']
    assert weights.keys() == saved.keys()
    assert saved['palette.colours'].isfinite().all()
    assert len(saved['palette.colours'].unique(dim=0)) == 16
    pictures = sorted(path.name for path in work_dir.glob('reconstructions/*'))
    assert pictures == ['iter_2.png', 'iter_4.png']
    picture = mmcv.imread(str(work_dir / 'reconstructions/iter_4.png'))
    assert picture.shape == (4 * 12, 5 * 12, 3)
    log = ''.join(path.read_text() for path in work_dir.rglob('*.log'))
    assert 'Found 16 colours in 12 samples' in log


@pytest.mark.parametrize('resumed', [True, False])
def test_the_hooks_do_not_change_the_result(resumed, trained, images, tmp_path):
    """Resumed with the palette of the checkpoint, or given a palette."""
    if resumed:
        train(tmp_path, *options(images, iterations=2), config=CONFIG)
        more, flags = ['custom_hooks.0.seed=9'], ('--resume', )
    else:
        palette = tmp_path / 'palette.npy'
        np.save(palette, trained[1]['palette.colours'].numpy())
        more, flags = [f'model.palette={palette}', 'custom_hooks.1.interval=1'], ()
    runner = train(tmp_path, *options(images), *more, flags=flags, config=CONFIG)
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, trained[1][name]), name


def evaluate(checkpoint, images, work_dir, *more):
    return run_test(CONFIG, checkpoint, work_dir, options=[*options(images), *more])


def test_prints_bits_per_pixel(trained, images, tmp_path):
    found = evaluate(trained[0] / 'iter_4.pth', images, tmp_path / 'a')
    assert set(found) == {
        f'bits_per_pixel/{name}' for name in ('model', 'unigram', 'context')}
    assert found['bits_per_pixel/context'] < found['bits_per_pixel/unigram'] < 4.5
    assert 0 < found['bits_per_pixel/model'] < 4.5
    again = evaluate(trained[0] / 'iter_4.pth', images, tmp_path / 'b')
    assert found == again
    # An untrained model has no preference.
    saved = torch.load(trained[0] / 'iter_4.pth', weights_only=False)
    for name in ('predict', 'map_features'):
        saved['state_dict'][f'net.{name}.weight'].zero_()
    torch.save(saved, tmp_path / 'zero.pth')
    found = evaluate(tmp_path / 'zero.pth', images, tmp_path / 'c')
    assert found['bits_per_pixel/model'] == pytest.approx(log2(16), abs=1e-5)


def test_trains_and_evaluates_masked(images, tmp_path):
    more = "model.objective='masked'"
    train(tmp_path / 'train', *options(images, 2), more, config=CONFIG)
    found = evaluate(tmp_path / 'train/iter_2.pth', images, tmp_path / 'test', more)
    assert 0 < found['bits_per_pixel/hidden'] < 5


def test_the_hook_refuses_other_models():
    with pytest.raises(ValueError, match='got Linear'):
        FitPaletteHook().before_train(SimpleNamespace(model=torch.nn.Linear(2, 2)))
    for name in ('images', 'pixels'):
        with pytest.raises(ValueError, match=f'{name} must be at least 1, got 0'):
            FitPaletteHook(**{name: 0})
