"""Pre-training from a folder of images to a checkpoint."""

from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
import torch
from helpers.masked_swins import green_mim
from helpers.pretraining_runs import (
    CONFIG,
    draw_images,
    in_two_processes,
    options,
    train,
)
from helpers.processes import together
from helpers.runs import options_of, run_test
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor

from fpt_plugin import ReconstructionError, ReconstructionHook
from fpt_plugin.commands.doctor.checks import FAIL, OK
from fpt_plugin.commands.doctor.data_probe import examine
from fpt_plugin.pretraining.reconstruction_hook import draw_reconstructions


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    runner = train(work_dir, *options(images))
    return work_dir, {k: v.clone() for k, v in runner.model.state_dict().items()}


def test_trains_and_draws(trained):
    work_dir, weights = trained
    saved = torch.load(work_dir / 'iter_4.pth', weights_only=False)['state_dict']
    assert weights.keys() == saved.keys()
    pictures = sorted(path.name for path in work_dir.glob('reconstructions/*'))
    assert pictures == ['iter_2.png', 'iter_4.png']
    picture = mmcv.imread(str(work_dir / 'reconstructions/iter_4.png'))
    assert picture.shape == (2 * 68, 3 * 68, 3)


@pytest.mark.parametrize('resumed', [True, False])
def test_resuming_and_pictures_do_not_change_the_result(
        resumed, trained, images, tmp_path):
    if resumed:
        train(tmp_path, *options(images, iterations=2))
        runner = train(tmp_path, *options(images), flags=('--resume', ))
    else:
        runner = train(tmp_path, *options(images), 'custom_hooks.0.interval=1')
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, trained[1][name]), name


def test_no_weight_decay_of_biases_and_tokens(images, tmp_path):
    runner = train(tmp_path, *options(images, iterations=1))
    names = {id(p): name for name, p in runner.model.named_parameters()}
    decayed = {
        names[id(p)] for group in runner.optim_wrapper.optimizer.param_groups
        for p in group['params'] if group['weight_decay']}
    assert decayed == {
        name for name, p in runner.model.named_parameters()
        if p.dim() > 1 and not name.endswith(('bias_table', 'mask_token'))}


def test_the_test_command(trained, images, tmp_path):
    found = run_test(CONFIG, trained[0] / 'iter_4.pth', tmp_path, options=[
        *options(images), f'test_dataloader.dataset.data_root={images}',
        'test_dataloader.num_workers=0', 'test_dataloader.batch_size=2',
        'test_dataloader.dataset.pipeline.1.scale=(64,64)'])
    error, flat, explained = (found.pop(f'reconstruction/{name}') for name in (
        'error', 'flat_error', 'explained'))
    assert not found
    assert explained == pytest.approx(1 - error / flat)
    # Units are normalised, and noise has no mean colour.
    assert flat == pytest.approx(1, abs=0.02) and 0 < error < 3


@pytest.mark.parametrize('name, content, text', [
    ('0.png', b'no image', r'0\.png'), ('inside/1.png', b'', r'1\.png'),
    ('0.png', cv2.imencode('.png', np.zeros((31, 99, 3), np.uint8))[1].tobytes(),
     r'31x99 in .*0\.png')])
def test_bad_images_are_named(tmp_path, name, content, text):
    folder = draw_images(tmp_path / 'images', 2)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        train(tmp_path / 'work', *options(folder))


def test_fewer_images_than_a_batch(images, tmp_path):
    config = CONFIG.with_name('greenmim_swin-t-p4-w7_8xb256-800e_224.py')
    with pytest.raises(ValueError, match=r'batch_size must be at most .* 6, .* got 8'):
        train(tmp_path, *options_of(dict(
            train_dataloader=dict(
                num_workers=0, batch_size=8, dataset=dict(data_root=images)),
            model=dict(backbone=dict(embed_dims=8, num_heads=(1, 2, 2, 4))))),
            config=config)


def test_the_doctor_reads_samples_and_a_training_checks_folders(images, tmp_path):
    cfg = Config.fromfile(CONFIG)
    cfg.test_dataloader.dataset.data_root = str(images)
    cfg.train_dataloader.dataset.data_root = str(images)
    for finding in examine(cfg):
        assert (finding.status, finding.text[:9]) == (OK, '6 samples')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    finding = next(iter(examine(cfg)))
    assert finding.status == FAIL and 'must hold images' in finding.text
    with pytest.raises(FileNotFoundError, match='data_root: .*nowhere'):
        train(tmp_path / 'work', *options(tmp_path / 'nowhere'))


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_a_picture_has_the_pixels_of_the_files(bgr_to_rgb):
    model = green_mim(data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[100., 110., 120.], std=[50., 51., 52.],
        bgr_to_rgb=bgr_to_rgb)).eval()
    assert isinstance(model.data_preprocessor, ImgDataPreprocessor)
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    picture = draw_reconstructions(model, dict(inputs=[image]))
    shown = picture[:64, :96].transpose(2, 0, 1)
    assert np.array_equal(shown, image.numpy())
    seen = picture[:64, 100:196].transpose(2, 0, 1)
    visible = (seen != 127).any(0)
    assert np.array_equal(seen[:, visible], shown[:, visible])
    reconstructed = picture[:64, 200:296].transpose(2, 0, 1)
    assert np.array_equal(reconstructed[:, visible], shown[:, visible])


def test_the_metric_averages_over_images():
    metric = ReconstructionError()
    metric.process({}, [dict(error=torch.tensor(0.25), flat_error=torch.tensor(1.))])
    metric.process({}, [dict(error=0.75, flat_error=3.), dict(error=2, flat_error=4)])
    found = metric.evaluate(3)
    assert found == {'reconstruction/error': 1., 'reconstruction/flat_error': 8 / 3,
                     'reconstruction/explained': pytest.approx(1 - 3 / 8)}
    metric.process({}, [dict(error=1, flat_error=0.)])  # constant images
    assert math.isnan(metric.evaluate(1)['reconstruction/explained'])
    with pytest.raises(ValueError, match=r"flat_error, got \['pred'\]"):
        metric.process({}, [dict(pred=1)])


def test_the_hook_rejects_other_models():
    with pytest.raises(ValueError, match='got Linear'):
        ReconstructionHook().before_train(SimpleNamespace(model=torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='interval'):
        ReconstructionHook(interval=0)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['groups', 'uniform', 'simmim'])
def test_two_processes_hide_different_units(kind, tmp_path):
    """Each parameter needs a gradient, or DDP fails in the second step."""
    (first, parameters), (second, others) = together(
        in_two_processes, kind, folder=tmp_path)
    masks = first + second
    assert all(a != b for i, a in enumerate(masks) for b in masks[:i])
    assert all(torch.equal(a, b) for a, b in zip(parameters, others))
