"""The restore command: one image, its restored copy and a picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import fpt_plugin  # noqa: F401
from fpt_plugin.commands import restore

MODEL = dict(type='IPT', tasks=('noise30', 'sr2'), channels=4, crop=12, depth=1,
             num_heads=3, overlap=4)


@pytest.fixture
def files(tmp_path):
    """Return a model and the paths of its config, checkpoint and an image (30, 41)."""
    Config(dict(default_scope='mmengine', model=MODEL)).dump(tmp_path / 'config.py')
    torch.manual_seed(0)
    model = MODELS.build(MODEL)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    image = np.full((30, 41, 3), (200, 120, 110), np.uint8)
    cv2.circle(image, (20, 15), 8, (10, 220, 30), -1)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    return model, [str(tmp_path / name) for name in (
        'config.py', 'model.pth', 'image.png')]


def run(*args):
    return restore.main(restore.parser().parse_args(list(args)))


def test_a_low_resolution_image(files, tmp_path):
    model, names = files
    out = tmp_path / 'out.png'
    found = run(*names, '--task', 'sr2', '--out', str(out))
    assert found == dict(restored=str(out), picture=str(tmp_path / 'out_beside.png'))
    rgb = cv2.imread(names[2])[..., ::-1].copy()
    want = model.eval().restore(
        torch.tensor(rgb).permute(2, 0, 1)[None].float(), 'sr2')
    want = want[0].round().permute(1, 2, 0).numpy()[..., ::-1]
    assert np.abs(cv2.imread(str(out)) - want).max() <= 1
    beside = cv2.imread(found['picture'])
    assert beside.shape == (60, 2 * 82 + restore.GAP, 3)
    assert np.array_equal(beside[:, -82:], cv2.imread(str(out)))
    assert (beside[:, 82:-82] == 255).all()
    with pytest.raises(FileExistsError, match='--force'):
        run(*names, '--task', 'sr2', '--out', str(out))


@pytest.mark.parametrize('task, width, least, most', [
    ('noise30', 41, 17, 20), ('sr2', 40, 18, 40)])
def test_a_clean_image_is_degraded(files, tmp_path, capsys, task, width, least, most):
    found = run(*files[1], '--task', task, '--degrade', '--flips', '--out',
                str(tmp_path / 'a.png'))
    assert least < found['psnr_input'] < most and found['psnr'] > 0
    beside = cv2.imread(found['picture'])
    assert beside.shape == (30, 3 * width + 2 * restore.GAP, 3)
    assert np.array_equal(beside[:, -width:], cv2.imread(files[1][2])[:, :width])
    assert f'PSNR {found["psnr"]:.2f} dB' in capsys.readouterr().out


def test_bad_input(files, tmp_path):
    names = files[1]
    out = ['--out', str(tmp_path / 'a.png')]
    with pytest.raises(ValueError, match="task must be one of .*got 'rain'"):
        run(*names, '--task', 'rain', *out)
    with pytest.raises(ValueError, match='must name another file'):
        run(*names, '--task', 'sr2', '--out', names[2], '--force')
    with pytest.raises(FileNotFoundError):
        run(*names[:2], str(tmp_path / 'none.png'), '--task', 'sr2', *out)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='broken.png is no image'):
        run(*names[:2], str(tmp_path / 'broken.png'), '--task', 'sr2', *out)
    torch.save(dict(state_dict=dict(a=torch.ones(1))), names[1])
    with pytest.raises(ValueError, match='another model'):
        run(*names, '--task', 'sr2', *out)
    Config(dict(default_scope='mmengine', model=dict(
        type='RestorationPretrainer', backbone=dict(
            type='mmdet.MobileNetV2', out_indices=(1, 2)),
        neck=dict(type='mmdet.FPN', in_channels=[24, 32], out_channels=8,
                  num_outs=2)))).dump(names[0])
    with pytest.raises(ValueError, match='must restore images of any size'):
        run(*names, '--task', 'sr2', *out)
    assert not (tmp_path / 'a.png').exists()
