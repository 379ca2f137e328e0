"""The quickstart's tasks on a few synthetic tiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from fpt_plugin.commands.quickstart import command as quickstart
from fpt_plugin.commands.quickstart import detection as quickstart_detection
from fpt_plugin.commands.quickstart import segmentation as quickstart_segmentation
from fpt_plugin.commands.quickstart.command import (
    TASKS,
    TrainingTime,
    parser,
    quickstart_config,
    rescale_schedule,
)
from fpt_plugin.commands.quickstart.trees import _CocoSet

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shipped(monkeypatch):
    """Tools run from the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Synthetic tiles and the shipped config at a size for tests."""
    rng = np.random.default_rng(0)
    for name in ('train', 'val'):
        coco = _CocoSet(tmp_path / 'data' / 'trees', name)
        for i in range(2):
            image = rng.integers(0, 80, (64, 64, 3), np.uint8)
            image[20:44, 8 + 4 * i:32 + 4 * i] += 150
            boxes = np.array([[8 + 4 * i, 20, 32 + 4 * i, 44]], float)
            coco.add(f'{i}.png', image, boxes)
        coco.save()
    config = tmp_path / 'small.py'
    config.write_text(f"""
_base_ = {str(ROOT / 'configs' / TASKS['detection'].config)!r}
model = dict(backbone=dict(init_cfg=None))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TASKS['detection'], 'config', str(config))
    # Weights are not needed; the tiles are there already.
    monkeypatch.setattr(quickstart_detection, 'prepare_mobilenet_v2',
                        lambda *_: None)
    return tmp_path


@pytest.fixture
def small_segmentation(tmp_path, monkeypatch):
    """Bright squares on dark tiles, and the shipped configs at small sizes."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('images', 'labels'):
            (tmp_path / 'data' / 'nuclei' / kind / split).mkdir(parents=True)
        for i in range(2):
            image = rng.integers(0, 80, (64, 64, 3), np.uint8)
            labels = np.zeros((64, 64), np.uint8)
            image[20:44, 8 + 4 * i:32 + 4 * i] += 150
            labels[20:44, 8 + 4 * i:32 + 4 * i] = 2
            for kind, pixels in (('images', image), ('labels', labels)):
                cv2.imwrite(str(tmp_path / 'data' / 'nuclei' / kind / split /
                                f'{i}.png'), pixels)
    for kind in ('images', 'labels'):
        folder = tmp_path / 'data' / 'nuclei-stroma' / kind / 'test'
        shutil.copytree(tmp_path / 'data' / 'nuclei' / kind / 'val', folder)
        (folder / '1.png').unlink()
        if kind == 'labels':  # half of the square is something else there
            labels = cv2.imread(str(folder / '0.png'), cv2.IMREAD_UNCHANGED)
            labels[32:] = 0
            cv2.imwrite(str(folder / '0.png'), labels)
    for attribute in ('config', 'ufp_config'):
        config = tmp_path / f'{attribute}.py'
        config.write_text(f"""
_base_ = {str(ROOT / 'configs' / getattr(TASKS['segmentation'], attribute))!r}
model = dict(backbone=dict(init_cfg=None, norm_eval=False),
             data_preprocessor=dict(size=(64, 64)))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
""")
        monkeypatch.setattr(TASKS['segmentation'], attribute, str(config))
    monkeypatch.chdir(tmp_path)
    # Weights are not needed; the tiles are there already.
    monkeypatch.setattr(quickstart_segmentation, 'prepare_mobilenet_v2',
                        lambda *_, **__: None)
    return tmp_path


@pytest.fixture
def small_pretraining(small, monkeypatch):
    """Three steps of a tiny backbone on the detector's tiles."""
    backbone = dict(embed_dims=8, num_heads=(1, 1, 1, 1), depths=(2, 1, 1, 1))
    config, detector = small / 'pretraining.py', small / 'detector.py'
    config.write_text(f"""
_base_ = {str(ROOT / 'configs' / TASKS['pretraining'].config)!r}
model = dict(backbone=dict({backbone}), decoder=dict(embed_dims=16))
pipeline = _base_.pipeline
pipeline[1].scale = 64
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (64, 64)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(times=3, dataset=dict(pipeline=pipeline)))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
""")
    detector.write_text(f"""
_base_ = {str(ROOT / 'configs' / TASKS['pretraining'].detector)!r}
model = dict(backbone=dict({backbone}), neck=dict(in_channels=[8, 16, 32, 64]))
""")
    monkeypatch.setattr(TASKS['pretraining'], 'config', str(config))
    monkeypatch.setattr(TASKS['pretraining'], 'detector', str(detector))
    return small


def run(*flags) -> dict:
    return quickstart.main(parser().parse_args(list(flags)))


# ----------------------------------------------------------------- settings


def test_one_word_changes_the_neck(shipped):
    """FPN and FPT share everything but the type of the neck."""
    fpt, fpn = (
        quickstart_config('detection', neck, None, 0, 'x').to_dict()
        for neck in ('fpt', 'fpn'))
    assert fpt['model']['neck'].pop('type') == 'FPT'
    assert fpn['model']['neck'].pop('type') == 'FPN'
    assert fpt == fpn


def test_schedule_is_stretched(shipped):
    cfg = quickstart_config('detection', 'fpt', 3, 7, 'x')
    assert cfg.train_cfg.max_epochs == 3 and cfg.train_cfg.val_interval == 3
    warmup, cosine = cfg.param_scheduler
    assert warmup.end == 30  # iterations
    assert cosine.end == cosine.T_max == 3
    assert cfg.randomness.seed == 7


def test_schedule_without_t_max():
    cfg = Config(
        dict(
            param_scheduler=[dict(type='MultiStepLR', end=12, by_epoch=True)],
            train_cfg=dict(max_epochs=12, val_interval=1)))
    rescale_schedule(cfg, 4)
    assert cfg.param_scheduler[0].end == 4


def test_schedule_of_iterations():
    cfg = Config.fromfile(
        ROOT / 'configs/pretraining/greenmim_swin-mini-p4-w7_1xb16-2k_192.py')
    rescale_schedule(cfg, 600)
    assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == 600
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.end, cosine.T_max) == (30, 30, 600, 570)
    rescale_schedule(cfg, 3)
    assert (warmup.end, cosine.begin, cosine.end, cosine.T_max) == (1, 1, 3, 2)


@pytest.mark.parametrize('epochs', [0, -1])
def test_no_epochs(shipped, epochs):
    with pytest.raises(ValueError, match=f'--epochs .* got {epochs}'):
        quickstart_config('detection', 'fpt', epochs, 0, 'x')


def test_unknown_neck():
    with pytest.raises(SystemExit):
        parser().parse_args(['--neck', 'pafpn'])


# ---------------------------------------------------------------------- run


def test_run_and_run_again(small, capsys, monkeypatch):
    summary = run('--epochs', '1')
    folder = small / 'work_dirs' / 'quickstart'
    written = json.loads((folder / 'summary.json').read_text())
    assert written == summary
    assert {'ap', 'ap50', 'ap75', 'train_images', 'val_images',
            'train_seconds', 'picture'} <= summary.keys()
    assert summary['train_images'] == summary['val_images'] == 2
    assert summary['train_seconds'] > 0
    picture = cv2.imread(summary['picture'])
    # two tiles, annotations beside detections
    assert picture.shape == (128, 128, 3)
    # the tiles are at most 230 bright, annotations white
    assert (picture[:, :64].min(-1) > 235).any()
    assert 'bash tools/run_tests.sh' in capsys.readouterr().out

    # The second run finds the first.
    def no_training(*_, **__):
        raise AssertionError('trained again')

    monkeypatch.setattr(TrainingTime, 'before_train_iter', no_training)
    assert run('--epochs', '1') == summary
    assert 'go on from there' in capsys.readouterr().out
    with pytest.raises(AssertionError, match='trained again'):
        run('--epochs', '1', '--fresh')
    # After other settings nothing is reused.
    with pytest.raises(AssertionError, match='trained again'):
        run('--epochs', '1', '--seed', '1')


def test_an_interrupted_run_goes_on(small, monkeypatch):
    count = TrainingTime.after_train_iter

    def interrupt(self, runner, *args, **kwargs):
        if runner.epoch == 1:
            raise KeyboardInterrupt
        count(self, runner, *args, **kwargs)

    monkeypatch.setattr(TrainingTime, 'after_train_iter', interrupt)
    with pytest.raises(KeyboardInterrupt):
        run('--epochs', '2', '--neck', 'fpn')
    folder = small / 'work_dirs' / 'quickstart-fpn'
    assert not (folder / 'summary.json').exists()

    epochs = []

    def note(self, runner, *args, **kwargs):
        epochs.append(runner.epoch)
        count(self, runner, *args, **kwargs)

    monkeypatch.setattr(TrainingTime, 'after_train_iter', note)
    summary = run('--epochs', '2', '--neck', 'fpn')
    assert set(epochs) == {1}
    assert summary['neck'] == 'fpn' and summary['epochs'] == 2


def test_the_other_neck_is_shown_beside(small, capsys):
    run('--epochs', '1', '--neck', 'fpn')
    alone = capsys.readouterr().out
    assert 'FPN  AP ' in alone and 'FPT  AP ' not in alone
    assert '--neck fpt' in alone
    run('--epochs', '1')
    both = capsys.readouterr().out
    assert 'FPT  AP ' in both and 'FPN  AP ' in both


# ------------------------------------------------------------- segmentation


def test_segmentation(small_segmentation, capsys):
    summary = run('--task', 'segmentation', '--epochs', '1')
    folder = small_segmentation / 'work_dirs' / 'quickstart-segmentation'
    assert json.loads((folder / 'summary.json').read_text()) == summary
    assert list(summary['iou']) == [
        'background', 'connective', 'inflammatory', 'neoplastic'
    ]
    # mmseg's mean is over the classes that occur
    occurring = [v for v in summary['iou'].values() if v is not None]
    assert summary['miou'] == pytest.approx(
        sum(occurring) / len(occurring), abs=1e-4)
    assert 0 <= summary['aacc'] <= 1
    assert summary['train_images'] == summary['val_images'] == 2
    # One tile with other labels: other figures.
    transfer = summary['transfer']
    assert list(transfer) == ['miou', 'aacc', 'iou']
    assert transfer['aacc'] != summary['aacc'] and transfer['miou'] > 0
    picture = cv2.imread(summary['picture'])
    assert picture.shape == (128, 128, 3)
    # the labels' colour over the bright square, in OpenCV's order
    blue, green, red = picture[32, 20].astype(int)
    assert blue > red + 50
    shown = capsys.readouterr().out
    assert 'MIOU' in shown and '--task segmentation --neck fpn' in shown
    assert f'on another image: MIOU {transfer["miou"]:.3f}' in shown


def test_without_what_reads_the_second_image(small_segmentation, capsys,
                                             monkeypatch):
    def prepare(*_):
        raise ImportError("No module named 'pyarrow'")

    monkeypatch.setattr(quickstart_segmentation, 'prepare_stroma', prepare)
    summary = run('--task', 'segmentation', '--epochs', '1', '--neck', 'fpn')
    assert summary['transfer'] is None and summary['miou'] > 0
    shown = capsys.readouterr().out
    assert "left out: No module named 'pyarrow'" in shown
    assert 'another image' not in shown


@pytest.mark.parametrize('neck', ['ufp'])
def test_segmentation_with_other_necks(small_segmentation, neck):
    summary = run('--task', 'segmentation', '--epochs', '1', '--neck', neck)
    assert summary['neck'] == neck
    assert str(summary['picture']).endswith(
        f'quickstart-segmentation-{neck}/segments.png')


def test_a_neck_of_the_other_task(shipped):
    with pytest.raises(ValueError, match=r"--neck must be one of .* 'ufp'"):
        quickstart_config('detection', 'ufp', None, 0, 'x')


def test_necks_of_the_segmentor(shipped):
    configs = {neck: quickstart_config('segmentation', neck, None, 0, 'x')
               for neck in ('fpt', 'fpn', 'ufp')}
    assert [c.model.neck.type for c in configs.values()] == [
        'FPT', 'FPN', 'FPT']
    assert configs['ufp'].model.neck.pyramid.type == 'UFP'
    assert configs['ufp'].model.decode_head.feature_strides == [8] * 4


# -------------------------------------------------------------- pre-training


def test_pretraining(small_pretraining, capsys, monkeypatch):
    summary = run('--task', 'pretraining', '--epochs', '2')
    folder = small_pretraining / 'work_dirs' / 'quickstart-pretraining'
    assert json.loads((folder / 'summary.json').read_text()) == summary
    assert summary['method'] == 'greenmim' and 'neck' not in summary
    assert summary['train_images'] == summary['val_images'] == 2
    assert summary['explained'] == pytest.approx(
        1 - summary['error'] / summary['flat_error'])
    assert summary['flat_error'] == pytest.approx(1, abs=0.05)
    picture = cv2.imread(summary['picture'])
    assert picture.shape == (2 * 68, 3 * 68, 3)
    # As the tiles are, from a part of them; grey where squares are hidden.
    tile = cv2.imread('data/trees/val/0.png')
    assert np.array_equal(picture[:64, :64], tile)
    assert (picture[:64, 68:132] == 127).all(-1).mean() == 0.75
    curve = cv2.imread(str(folder / 'loss.png'))
    assert curve.shape == (450, 900, 3) and curve.std() > 1
    shown = capsys.readouterr().out
    assert 'EXPLAINED' in shown and '--task pretraining --method uniform' in shown
    assert f'checkpoint={summary["backbone"]!r}' in shown

    # The backbone is what was trained, and the detector takes it.
    saved = torch.load(folder / 'epoch_2.pth', weights_only=False)['state_dict']
    cfg = Config.fromfile(TASKS['pretraining'].detector).model.backbone
    assert cfg.init_cfg.checkpoint == summary['backbone']
    backbone = MODELS.build(cfg)
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert f'backbone.{key}' in saved or key.startswith('norm'), key
        if f'backbone.{key}' in saved:
            assert torch.equal(value, saved[f'backbone.{key}']), key

    # The second run finds the first and hides the same squares.
    def no_training(*_, **__):
        raise AssertionError('trained again')

    monkeypatch.setattr(TrainingTime, 'before_train_iter', no_training)
    assert run('--task', 'pretraining', '--epochs', '2') == summary


@pytest.mark.slow
@pytest.mark.parametrize('method', ['uniform', 'simmim'])
def test_other_methods_of_pretraining(small_pretraining, method):
    summary = run('--task', 'pretraining', '--epochs', '1', '--method', method)
    assert summary['method'] == method and summary['explained'] < 1
    assert f'quickstart-pretraining-{method}' in summary['backbone']


@pytest.mark.parametrize('flags, message', [
    (['--task', 'pretraining', '--neck', 'fpn'], r"--method \('greenmim'.*got --neck"),
    (['--method', 'simmim'], r"--task detection has --neck .*got --method simmim"),
])
def test_the_flag_of_another_task(shipped, flags, message):
    with pytest.raises(ValueError, match=message):
        run(*flags)
