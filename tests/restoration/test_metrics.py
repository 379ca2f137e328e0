"""PSNR and SSIM equal those of scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fpt_plugin import PSNR, SSIM
from fpt_plugin.restoration.metrics import NL_MEANS, nl_means


def images(seed=0, shape=(3, 40, 53)):
    rng = np.random.default_rng(seed)
    target = rng.integers(256, size=shape)
    target[:, 10:30] = target[:, 10:30].mean((1, 2), keepdims=True)
    image = (target + rng.normal(0, 20, shape)).round().clip(0, 255)
    return (torch.from_numpy(x.astype(np.uint8)) for x in (image, target))


def scikit_images(name, image, target):
    """Compute a metric of (H, W, C) by scikit-image."""
    if name == 'PSNR':
        return peak_signal_noise_ratio(target, image, data_range=255)
    return structural_similarity(
        target, image, data_range=255, channel_axis=-1, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False)


def evaluate(metric, image, target, task=None, **batch):
    sample = dict(pred_img=image, gt_img=target)
    metric.process(batch, [dict(sample, task=task) if task else sample])
    return metric.evaluate(1)


@pytest.mark.parametrize('metric', [PSNR, SSIM])
@pytest.mark.parametrize('order', ['bgr', 'rgb'])
@pytest.mark.parametrize('border', [0, 3])
@pytest.mark.parametrize('luminance', [False, True])
def test_equal_scikit_images(metric, order, border, luminance):
    image, target = images()
    found = evaluate(metric(
        luminance=luminance, crop_border=border, channel_order=order), image, target)
    inside = slice(border, -border or None)
    both = [x.permute(1, 2, 0).numpy()[inside, inside] for x in (image, target)]
    if luminance:
        both = [x[..., ::-1] if order == 'bgr' else x for x in both]
        both = [rgb2ycbcr(x)[..., :1] for x in both]
    assert found == {metric.name: pytest.approx(
        scikit_images(metric.name, *both), rel=1e-7)}


def test_restored_images_are_rounded_and_clipped():
    image, target = images()
    noisy = image.float() + 0.3
    noisy[image == 255] = 400
    assert evaluate(PSNR(), noisy, target) == evaluate(PSNR(), image, target)
    assert evaluate(PSNR(), image, image) == dict(PSNR=np.inf)
    assert evaluate(SSIM(), image, image) == dict(SSIM=pytest.approx(1))


def test_means_of_tasks_and_of_the_input():
    evaluator = Evaluator([PSNR(compare_input=True), SSIM(prefix='x')])
    inputs, samples = [], []
    for seed, task in enumerate(['sr2', 'rain', 'sr2']):
        image, target = images(seed, (3, 40, 52))
        small = image[:, ::2, ::2].float() if task == 'sr2' else image
        inputs.append(small)
        samples.append(BaseDataElement(
            metainfo=dict(task=task), pred_img=image, gt_img=target))
    evaluator.process(samples, dict(inputs=inputs))
    found = evaluator.evaluate(3)
    single = [evaluate(PSNR(), s.pred_img, s.gt_img)['PSNR'] for s in samples]
    assert found['sr2/PSNR'] == pytest.approx((single[0] + single[2]) / 2)
    assert found['rain/PSNR'] == found['rain/PSNR_input'] == single[1]
    assert found['PSNR'] == pytest.approx(sum(single) / 3)
    assert found['sr2/PSNR_input'] < found['sr2/PSNR']
    assert {'x/SSIM', 'x/rain/SSIM', 'x/sr2/SSIM'} < set(found)


def test_non_local_means_beside_the_model():
    target = torch.full((3, 40, 52), 90, dtype=torch.uint8)
    target[:, :, 26:] = 160
    noisy = (target + 30 * torch.randn(target.shape, generator=torch.Generator()
                                       .manual_seed(0)))
    evaluator = Evaluator([PSNR(compare_nl_means=True)])
    inputs = [noisy, noisy, noisy[:, ::2, ::2]]
    samples = [BaseDataElement(metainfo=dict(task=task), pred_img=noisy, gt_img=target)
               for task in ('noise30', 'noise50', 'sr2')]
    evaluator.process(samples, dict(inputs=inputs))
    found = evaluator.evaluate(3)
    assert found['noise30/PSNR_nl_means'] > found['noise30/PSNR'] + 5
    assert 'sr2/PSNR_nl_means' not in found  # only noise has a strength
    weak, strong = (nl_means(noisy, NL_MEANS[task]) for task in ('noise30', 'noise50'))
    assert strong[:, :, :20].std() < 0.9 * weak[:, :, :20].std()
    # The channels' order matters only for the conversion to luma.
    rgb = Evaluator([PSNR(compare_nl_means=True, channel_order='rgb')])
    rgb.process([BaseDataElement(
        metainfo=dict(task='noise30'), pred_img=noisy, gt_img=target.flip(0))],
        dict(inputs=[noisy.flip(0)]))
    assert rgb.evaluate(1)['noise30/PSNR_nl_means'] == pytest.approx(
        found['noise30/PSNR_nl_means'])
    with pytest.raises(ValueError, match='three channels, got '):
        nl_means(noisy[:1], 9.)


def test_the_border_of_a_scale():
    image, target = images()
    metric = PSNR(crop_border='scale')
    for task, border in (('sr3', 3), ('rain', 0), (None, 0)):
        assert evaluate(metric, image, target, task)['PSNR'] == evaluate(
            PSNR(crop_border=border), image, target)['PSNR']


@pytest.mark.parametrize('settings, error, text', [
    (dict(crop_border=-1), ValueError, 'crop_border'),
    (dict(crop_border='x'), ValueError, 'crop_border'),
    (dict(channel_order='gbr'), ValueError, 'channel_order'),
    (dict(luminance=1), TypeError, 'luminance'),
    (dict(compare_nl_means=1), TypeError, 'compare_nl_means')])
def test_bad_arguments(settings, error, text):
    with pytest.raises(error, match=text):
        PSNR(**settings)


@pytest.mark.parametrize('metric, part, text', [
    (PSNR(), (slice(None), slice(1, None)), 'pred_img must have the shape'),
    (PSNR(crop_border=20), ..., 'crop_border=20 leaves nothing'),
    (SSIM(crop_border=15), ..., 'sides of at least 11'),
    (PSNR(luminance=True), slice(1), 'three channels')])
def test_bad_images(metric, part, text):
    image, target = images()
    target = target[part] if text == 'three channels' else target
    with pytest.raises(ValueError, match=text):
        evaluate(metric, image[part], target)
