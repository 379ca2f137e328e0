"""The quickstart's tasks on a few synthetic tiles."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from fpt_plugin.commands.quickstart import command as quickstart
from fpt_plugin.commands.quickstart import segmentation
from fpt_plugin.commands.quickstart.command import (
    TASKS,
    TrainingTime,
    parser,
    quickstart_config,
    rescale_schedule,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shipped(monkeypatch):
    """Run in the repository's root."""
    monkeypatch.chdir(ROOT)


def trained_again(*_, **__):
    raise AssertionError('trained again')


def run(*flags) -> dict:
    return quickstart.main(parser().parse_args(list(flags)))


def written(folder, name='') -> dict:
    return json.loads((folder / f'work_dirs/quickstart{name}/summary.json').read_text())


# ----------------------------------------------------------------- settings


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_only_the_neck_differs(shipped, task):
    fpt, fpn = (quickstart_config(task, neck, None, 0, 'x').to_dict()
                for neck in ('fpt', 'fpn'))
    assert fpt['model']['neck'].pop('type') == 'FPT'
    assert fpn['model']['neck'].pop('type') == 'FPN'
    assert fpt == fpn


def test_the_schedule_is_scaled(shipped):
    cfg = quickstart_config('detection', 'fpt', 3, 7, 'x')
    assert cfg.train_cfg.max_epochs == 3 and cfg.train_cfg.val_interval == 3
    warmup, cosine = cfg.param_scheduler
    assert warmup.end == 30  # iterations
    assert cosine.end == cosine.T_max == 3
    assert cfg.randomness.seed == 7
    # Without T_max.
    cfg = Config(dict(
        param_scheduler=[dict(type='MultiStepLR', end=12, by_epoch=True)],
        train_cfg=dict(max_epochs=12, val_interval=1)))
    rescale_schedule(cfg, 4)
    assert cfg.param_scheduler[0].end == 4
    # In iterations.
    cfg = Config.fromfile(
        ROOT / 'configs/pretraining/greenmim_swin-mini-p4-w7_1xb16-2k_192.py')
    for length, warmup_length in ((600, 30), (3, 1)):
        rescale_schedule(cfg, length)
        assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == length
        warmup, cosine = cfg.param_scheduler
        assert warmup.end == cosine.begin == warmup_length
        assert (cosine.end, cosine.T_max) == (length, length - warmup_length)


@pytest.mark.parametrize('flags, error, message', [
    (['--epochs', '0'], ValueError, '--epochs .* got 0'),
    (['--neck', 'ufp'], ValueError, r"--neck must be one of .* 'ufp'"),
    (['--neck', 'pafpn'], SystemExit, '2'),
    (['--task', 'pretraining', '--neck', 'fpn'], ValueError,
     r"--method \('greenmim'.*got --neck"),
    (['--method', 'simmim'], ValueError,
     r"--task detection has --neck .*got --method simmim"),
])
def test_wrong_flags(shipped, flags, error, message):
    with pytest.raises(error, match=message):
        run(*flags)


# ---------------------------------------------------------------- detection


def test_run_and_run_again(small, capsys, monkeypatch):
    summary = run('--epochs', '1')
    assert written(small) == summary
    assert {'ap', 'ap50', 'ap75', 'picture'} <= summary.keys()
    assert summary['train_images'] == summary['val_images'] == 2
    assert summary['train_seconds'] > 0
    picture = cv2.imread(summary['picture'])
    # Two tiles with annotations and detections. Tiles are at most 230 bright,
    # annotations are white.
    assert picture.shape == (128, 128, 3)
    assert (picture[:, :64].min(-1) > 235).any()
    assert 'bash tools/run_tests.sh' in capsys.readouterr().out

    monkeypatch.setattr(TrainingTime, 'before_train_iter', trained_again)
    assert run('--epochs', '1') == summary
    assert 'go on from there' in capsys.readouterr().out
    for flags in (['--fresh'], ['--seed', '1']):
        with pytest.raises(AssertionError, match='trained again'):
            run('--epochs', '1', *flags)


def test_an_interrupted_run_resumes(small, monkeypatch, capsys):
    count = TrainingTime.after_train_iter
    interrupt, epochs = [True], []

    def record(self, runner, *args, **kwargs):
        if runner.epoch == 1 and interrupt:
            raise KeyboardInterrupt
        epochs.append(runner.epoch)
        count(self, runner, *args, **kwargs)

    monkeypatch.setattr(TrainingTime, 'after_train_iter', record)
    with pytest.raises(KeyboardInterrupt):
        run('--epochs', '2', '--neck', 'fpn')
    assert not (small / 'work_dirs/quickstart-fpn/summary.json').exists()
    interrupt.clear()
    epochs.clear()
    capsys.readouterr()
    summary = run('--epochs', '2', '--neck', 'fpn')
    assert set(epochs) == {1}
    assert summary['neck'] == 'fpn' and summary['epochs'] == 2
    # The report compares the necks that have been trained.
    shown = capsys.readouterr().out
    assert 'FPN  AP ' in shown and 'FPT  AP ' not in shown
    assert '--neck fpt' in shown
    run('--epochs', '1')
    shown = capsys.readouterr().out
    assert 'FPT  AP ' in shown and 'FPN  AP ' in shown


# ------------------------------------------------------------- segmentation


def test_segmentation(small_segmentation, capsys):
    summary = run('--task', 'segmentation', '--epochs', '1')
    assert written(small_segmentation, '-segmentation') == summary
    assert list(summary['iou']) == [
        'background', 'connective', 'inflammatory', 'neoplastic']
    # mmseg's mean is over the classes that occur.
    occurring = [v for v in summary['iou'].values() if v is not None]
    assert summary['miou'] == pytest.approx(np.mean(occurring), abs=1e-4)
    assert 0 <= summary['aacc'] <= 1
    assert summary['train_images'] == summary['val_images'] == 2
    transfer = summary['transfer']
    assert list(transfer) == ['miou', 'aacc', 'iou']
    assert transfer['aacc'] != summary['aacc'] and transfer['miou'] > 0
    picture = cv2.imread(summary['picture'])
    assert picture.shape == (128, 128, 3)
    # The labels' colour over the bright square, in OpenCV's order.
    blue, green, red = picture[32, 20].astype(int)
    assert blue > red + 50
    shown = capsys.readouterr().out
    assert 'MIOU' in shown and '--task segmentation --neck fpn' in shown
    assert f'on another image: MIOU {transfer["miou"]:.3f}' in shown


def test_segmentation_with_ufp_and_without_pyarrow(
        small_segmentation, capsys, monkeypatch):

    def prepare(*_):
        raise ImportError("No module named 'pyarrow'")

    monkeypatch.setattr(segmentation, 'prepare_stroma', prepare)
    summary = run('--task', 'segmentation', '--epochs', '1', '--neck', 'ufp')
    assert summary['neck'] == 'ufp'
    assert summary['picture'].endswith('quickstart-segmentation-ufp/segments.png')
    assert summary['transfer'] is None and summary['miou'] > 0
    shown = capsys.readouterr().out
    assert "skipped: No module named 'pyarrow'" in shown
    assert 'another image' not in shown


# -------------------------------------------------------------- pre-training


def test_pretraining(small_pretraining, capsys, monkeypatch):
    summary = run('--task', 'pretraining', '--epochs', '2')
    folder = small_pretraining / 'work_dirs' / 'quickstart-pretraining'
    assert written(small_pretraining, '-pretraining') == summary
    assert summary['method'] == 'greenmim' and 'neck' not in summary
    assert summary['train_images'] == summary['val_images'] == 2
    assert summary['explained'] == pytest.approx(
        1 - summary['error'] / summary['flat_error'])
    assert summary['flat_error'] == pytest.approx(1, abs=0.05)
    picture = cv2.imread(summary['picture'])
    assert picture.shape == (2 * 68, 3 * 68, 3)
    # The tile, then its visible squares with grey ones between.
    assert np.array_equal(picture[:64, :64], cv2.imread('data/trees/val/0.png'))
    assert (picture[:64, 68:132] == 127).all(-1).mean() == 0.75
    curve = cv2.imread(str(folder / 'loss.png'))
    assert curve.shape == (450, 900, 3) and curve.std() > 1
    shown = capsys.readouterr().out
    assert 'EXPLAINED' in shown and '--task pretraining --method uniform' in shown
    assert f'checkpoint={summary["backbone"]!r}' in shown

    # The detector loads the trained backbone.
    cfg = Config.fromfile(TASKS['pretraining'].detector).model.backbone
    assert cfg.init_cfg.checkpoint == summary['backbone']
    MODELS.build(cfg).init_weights()

    # A second run reuses the first and masks the same squares.
    monkeypatch.setattr(TrainingTime, 'before_train_iter', trained_again)
    assert run('--task', 'pretraining', '--epochs', '2') == summary


@pytest.mark.slow
@pytest.mark.parametrize('method', ['uniform', 'simmim'])
def test_other_methods_of_pretraining(small_pretraining, method):
    summary = run('--task', 'pretraining', '--epochs', '1', '--method', method)
    assert summary['method'] == method and summary['explained'] < 1
    assert f'quickstart-pretraining-{method}' in summary['backbone']
