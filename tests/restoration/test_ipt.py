"""IPT as a model: losses, image sizes, tasks, batches of one task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.learning import descend, without_gradient
from mmengine.registry import FUNCTIONS, MODELS
from mmengine.structures import BaseDataElement

import fpt_plugin  # noqa: F401
from fpt_plugin import IPT
from fpt_plugin.restoration.degradations import TASKS

SMALL = dict(channels=4, crop=12, depth=1, num_heads=3, overlap=4)


def build(**args):
    torch.manual_seed(0)
    return MODELS.build(dict(dict(SMALL, type='IPT'), **args))


def batch_of(tasks, crop=12):
    """Return degraded images and samples like the data loader."""
    inputs, samples = [], []
    for task in tasks:
        side = crop * TASKS[task].scale
        clean = torch.randint(256, (3, side, side), dtype=torch.uint8)
        inputs.append(255 * torch.rand(3, crop, crop))
        sample = BaseDataElement(metainfo=dict(task=task))
        sample.gt_img = clean
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses_of(model, batch):
    return model(**model.data_preprocessor(batch, True), mode='loss')


def test_every_task_has_a_gradient_and_mixed_batches_are_means():
    model = build(contrastive_weight=0.)
    batch = batch_of(list(TASKS) + ['sr2'])
    losses = losses_of(model, batch)
    assert set(losses) == {'loss_l1'}
    losses['loss_l1'].backward()
    assert without_gradient(model) == []
    alone = [losses_of(model, {k: v[i:i + 1] for k, v in batch.items()})['loss_l1']
             for i in range(7)]
    torch.testing.assert_close(losses['loss_l1'], torch.stack(alone).mean())


def test_weight_of_the_contrastive_loss():
    batch = batch_of(['rain', 'rain', 'rain'])
    tenth, whole = (losses_of(build(contrastive_weight=w), batch)['loss_contrastive']
                    for w in (0.1, 1.))
    torch.testing.assert_close(10 * tenth, whole)
    assert whole > 0


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('size', [(1, 1), (12, 12), (7, 30), (25, 13)])
def test_any_size(task, size):
    model, scale = build(), TASKS[task].scale
    images = 255 * torch.rand(2, 3, *size)
    out = model.restore(images, task)
    assert out.shape == (2, 3, *(scale * side for side in size))
    assert out.min() >= 0 and out.max() <= 255
    torch.testing.assert_close(out[1:], model.restore(images[1:], task))


def test_one_crop_is_the_output_of_the_network():
    model, images = build(add_bicubic=True), 255 * torch.rand(1, 3, 12, 12)
    normal = (images - 127.5) / 127.5
    with torch.no_grad():
        plain = model.net(normal, 'sr2')[0] + torch.nn.functional.interpolate(
            normal, scale_factor=2, mode='bicubic')
    torch.testing.assert_close(
        model.restore(images, 'sr2'), (plain * 127.5 + 127.5).clamp(0, 255))


def test_averaging_over_flips_is_equivariant():
    model = build().double()
    images = 255 * torch.rand(1, 3, 16, 21, dtype=torch.float64)
    out = model.restore(images, 'sr2', flips=True)
    turned = model.restore(images.rot90(1, (2, 3)).flip(3), 'sr2', flips=True)
    torch.testing.assert_close(turned, out.rot90(1, (2, 3)).flip(3))


def test_predicted_images_are_those_of_restore():
    """Files and predictions are BGR; restore takes and returns RGB."""
    model, batch = build(), batch_of(['rain', 'noise30', 'rain'])
    samples = model(**model.data_preprocessor(batch), mode='predict')
    for image, sample in zip(batch['inputs'], samples):
        expected = model.restore(image.flip(0)[None], sample.task)[0].flip(0)
        torch.testing.assert_close(
            sample.pred_img.clamp(0, 255), expected, rtol=1e-5, atol=1e-4)


def test_a_model_of_one_task_needs_no_samples():
    model = build(tasks='sr3')
    assert model(torch.randn(2, 3, 12, 12)).shape == (2, 3, 36, 36)
    many = build()
    with pytest.raises(ValueError, match='data_samples must have the task'):
        many(torch.randn(2, 3, 12, 12))
    with pytest.raises(ValueError, match='must have one task'):
        many(torch.randn(2, 3, 12, 12), batch_of(['sr2', 'rain'])['data_samples'])


def test_a_model_of_one_task_loads_a_checkpoint_of_many():
    many, one = build(), build(tasks=('noise50', ))
    missing, unexpected = one.load_state_dict(many.state_dict(), strict=False)
    assert not missing
    assert all(any(f'.{task}' in key for task in TASKS if task != 'noise50')
               for key in unexpected)
    images = 255 * torch.rand(1, 3, 20, 15)
    assert torch.equal(many.restore(images, 'noise50'), one.restore(images, 'noise50'))


def test_learns_to_denoise():
    model = build(tasks='noise50', channels=8, num_heads=4, contrastive_weight=0.)

    def loss():
        clean = 255 * torch.rand(8, 3, 1, 1).expand(-1, -1, 12, 12)
        samples = [BaseDataElement(gt_img=image) for image in clean]
        inputs = list(clean + 50 * torch.randn_like(clean))
        return losses_of(model, dict(inputs=inputs, data_samples=samples))['loss_l1']

    found = descend(model, loss, 60, 3e-3)
    assert np.mean(found[-5:]) < 0.5 * np.mean(found[:5])


@pytest.mark.parametrize('args, error, text', [
    (dict(tasks=('sr5', )), ValueError, 'tasks must be one or several'),
    (dict(tasks=()), ValueError, 'tasks must be one or several'),
    (dict(overlap=12), ValueError, r'overlap must be in \[0, crop=12\), got 12'),
    (dict(contrastive_weight=-1.), ValueError, 'contrastive_weight'),
    (dict(add_bicubic=1), TypeError, 'add_bicubic'),
])
def test_bad_arguments(args, error, text):
    with pytest.raises(error, match=text):
        IPT(**dict(SMALL, **args))


def test_bad_inputs():
    model = build(tasks=('sr2', 'rain'))
    batch = batch_of(['sr2'], crop=15)
    with pytest.raises(ValueError, match='crop=12, got'):
        losses_of(model, batch)
    batch = batch_of(['sr2'])
    batch['data_samples'][0].gt_img = torch.zeros(3, 12, 12)
    with pytest.raises(ValueError, match='clean images of sr2 must be'):
        losses_of(model, batch)
    with pytest.raises(ValueError, match="task must be one of .*got 'noise30'"):
        model.restore(torch.rand(1, 3, 12, 12), 'noise30')
    with pytest.raises(ValueError, match='images must'):
        model.restore(torch.rand(1, 1, 12, 12), 'rain')
    with pytest.raises(ValueError, match='mode must'):
        model(torch.rand(1, 3, 12, 12), batch['data_samples'], mode='x')


def test_batches_of_one_task():
    collate = FUNCTIONS.get('one_task_collate')
    images = [dict(img=np.full((64, 70, 3), i, np.uint8), img_path=f'{i}.png')
              for i in range(3)]
    np.random.seed(0)
    seen = set()
    for _ in range(40):
        batch = collate(images, crop=12, tasks=('sr4', 'noise30', 'rain'))
        task, = {sample.task for sample in batch['data_samples']}
        side = 12 * TASKS[task].scale
        assert {tuple(x.shape) for x in batch['inputs']} == {(3, 12, 12)}
        assert [sample.gt_img.shape for sample in batch['data_samples']] == [
            (3, side, side)] * 3
        assert [int(s.gt_img.float().mean())
                for s in batch['data_samples']] == [0, 1, 2]
        seen.add(task)
    assert seen == {'sr4', 'noise30', 'rain'}
    losses_of(build(), batch)['loss_l1'].backward()
    with pytest.raises(ValueError, match='at least 80 for sr4, got 64x70 in 0.png'):
        collate(images, crop=20, tasks='sr4')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model, batch = build(), batch_of(['sr2', 'noise30', 'sr2'])
    with torch.autocast('cpu', dtype):
        losses = losses_of(model, batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    exact = losses_of(model, batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=0.03, atol=0.01)
