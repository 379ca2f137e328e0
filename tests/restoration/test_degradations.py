"""Degraded images: statistics, seeds and bad input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile

from fpt_plugin import Degrade, PackImage
from fpt_plugin.restoration.degradations import TASKS, add_rain, downsample, resize


def picture(height=96, width=120, channels=3):
    """A smooth image with edges, uint8."""
    y, x = np.mgrid[:height, :width][..., None]
    image = 128 + 60 * np.sin(x / 7 + np.arange(channels)) * np.cos(y / 9) \
        + 50 * ((x // 20 + y // 20) % 2)
    return image.clip(0, 255).astype(np.uint8)


def degraded(image=None, path='a.png', **settings):
    return Degrade(**settings)(dict(
        img=picture() if image is None else image, img_path=path))


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('shape', [(96, 120, 3), (35, 49, 1), (37, 41, 5), (33, 40)])
def test_keeps_the_clean_image(task, shape):
    image = np.resize(picture(), shape).astype(np.uint8)
    results = degraded(image.copy(), tasks=task, seed=0)
    scale = TASKS[task].scale
    height, width = (side // scale * scale for side in shape[:2])
    clean = image.reshape(*shape[:2], -1)
    assert np.array_equal(results['gt_img'], clean[:height, :width])
    assert results['img'].shape == (height // scale, width // scale, clean.shape[2])
    assert results['img'].dtype == np.float32
    assert results['img_shape'] == results['img'].shape[:2]
    assert results['task'] == task
    assert not np.array_equal(results['img'], results['gt_img'])

    results = degraded(image.copy(), tasks=task, seed=0, enlarge=True)
    assert np.array_equal(results['gt_img'], clean)
    assert results['img'].shape == clean.shape


@pytest.mark.parametrize('task, sigma', [('noise30', 30), ('noise50', 50)])
def test_noise_is_gaussian(task, sigma):
    image = np.full((200, 200, 3), 250, np.uint8)
    noise = degraded(image, tasks=task, seed=1)['img'] - 250
    assert abs(noise.mean()) < 0.5
    assert abs(noise.std() / sigma - 1) < 0.01
    assert abs((noise**4).mean() / sigma**4 - 3) < 0.1
    # Independent of its neighbours and of other channels.
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.02 * sigma**2
    assert abs((noise[..., 0] * noise[..., 1]).mean()) < 0.02 * sigma**2


def test_rain_consists_of_streaks():
    image = np.full((240, 320, 3), 60, np.float32)
    layer = add_rain(image, np.random.default_rng(3)) - image
    assert (layer[..., :1] == layer).all()  # white
    layer = layer[..., 0]
    assert layer.min() == 0 and layer.max() <= 195
    assert 0.02 < (layer > 0).mean() < 0.3
    # Equal in all quarters; distant rows correlate at one shift, the slope.
    parts = [part.mean() for half in np.split(layer, 2) for part in
             np.split(half, 2, axis=1)]
    assert max(parts) < 2 * min(parts)
    similar = [np.corrcoef(np.roll(layer[:-6], shift, axis=1).ravel(),
                           layer[6:].ravel())[0, 1] for shift in range(-12, 13)]
    assert max(similar) > 0.3 and np.median(similar) < 0.1


def keys(x):
    """Keys' cubic kernel, a = -0.5."""
    x = np.abs(x)
    return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(
        x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.))


def imresize_matrix(source, target):
    """Return MATLAB's imresize as a matrix (target, source); it mirrors borders."""
    scale = source / target
    stretch = max(scale, 1)
    matrix = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * scale - 0.5
        taps = np.arange(np.floor(centre - 2 * stretch),
                         np.ceil(centre + 2 * stretch) + 1)
        weights = keys((taps - centre) / stretch)
        mirrored = np.concatenate([np.arange(source), np.arange(source)[::-1]])
        np.add.at(matrix[row], mirrored[taps.astype(int) % (2 * source)],
                  weights / weights.sum())
    return matrix


@pytest.mark.parametrize('scale', [2, 3, 4, 1 / 2, 1 / 3])
def test_bicubic_equals_matlabs_inside(scale):
    image = np.random.default_rng(0).random((48, 60, 2)).astype(np.float32) * 255
    size = tuple(round(side / scale) for side in image.shape[:2])
    ours = resize(image, size)
    rows, columns = (imresize_matrix(a, b) for a, b in zip(image.shape, size))
    expected = np.einsum('ia,jb,abc->ijc', rows, columns, image.astype(np.float64))
    border = round(2 * max(1, 1 / scale)) + 1
    inside = slice(border, -border)
    np.testing.assert_allclose(ours[inside, inside], expected[inside, inside],
                               atol=5e-3)


def test_downsampling_has_no_aliases_and_is_rounded():
    stripes = np.zeros((48, 48, 1), np.float32)
    stripes[:, ::2] = 255
    small = downsample(stripes, scale=4)
    assert np.array_equal(small, small.round())
    assert abs(small[2:-2, 2:-2] - 127.5).max() <= 8
    assert downsample(stripes[:47, :46], scale=3).shape == (16, 16, 1)


def test_the_seed_determines_the_degradation():
    def draw(**settings):
        results = degraded(**settings)
        return results['task'], results['img'].tobytes()

    assert draw(seed=1) == draw(seed=1) == draw(seed=1, path='elsewhere/a.png')
    assert draw(seed=1, tasks='rain') != draw(seed=2, tasks='rain')
    assert draw(seed=1, tasks='rain') != draw(seed=1, tasks='rain', path='b.png')
    np.random.seed(0)
    first = [draw() for _ in range(30)]
    assert {task for task, _ in first} == {*TASKS}
    noisy = [image for task, image in first if not task.startswith('sr')]
    assert len(set(noisy)) == len(noisy)
    np.random.seed(0)
    assert [draw() for _ in range(30)] == first


def test_pack_image_with_the_clean_image():
    results = degraded(tasks='sr2')
    packed = PackImage()(results)
    assert packed['inputs'].shape == (3, 48, 60)
    sample = packed['data_samples']
    assert sample.gt_img.shape == (3, 96, 120)
    assert np.array_equal(sample.gt_img.numpy().transpose(1, 2, 0), picture())
    assert (sample.task, sample.img_path) == ('sr2', 'a.png')


@pytest.mark.parametrize('image, text', [
    (picture().astype(np.uint16) * 200, r'0 to 255 .* got uint16 of .* in a\.png'),
    (picture().astype(np.float32) - 200, r'got float32 of -\d+'),
    (np.zeros((2, 3, 4, 5), np.uint8), r'got \(2, 3, 4, 5\) in a\.png'),
    (np.zeros((0, 3, 3), np.uint8), r'got \(0, 3, 3\)'),
    (np.zeros((3, 9, 3), np.uint8), 'at least 4 for sr4, got 3x9 in a.png'),
])
def test_bad_images(image, text):
    with pytest.raises(ValueError, match=text):
        degraded(image, tasks='sr4')


def test_other_valid_images(tmp_path):
    """Of floats, and grey files of 16 bits."""
    image = picture().astype(np.float64)
    assert np.array_equal(degraded(image, tasks='sr2')['gt_img'], image)
    path = str(tmp_path / 'a.png')
    cv2.imwrite(path, picture(channels=1)[..., 0].astype(np.uint16) * 257)
    results = Degrade('rain')(LoadImageFromFile()(dict(img_path=path)))
    assert results['gt_img'].shape == (96, 120, 3)
    assert results['gt_img'].dtype == np.uint8


@pytest.mark.parametrize('settings, error', [
    *((dict(tasks=tasks), ValueError)
      for tasks in ('blur', [], ['rain', 'rain'], ['rain', 'sr8'])),
    (dict(tasks=30), TypeError), (dict(tasks=[30]), TypeError),
    (dict(enlarge='no'), TypeError), (dict(seed=1.5), TypeError),
    (dict(seed=-1), ValueError), (dict(seed=True), TypeError)])
def test_bad_arguments(settings, error):
    with pytest.raises(error, match=f'{next(iter(settings))} must '):
        Degrade(**settings)
