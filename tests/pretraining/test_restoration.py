"""RestorationPretrainer: what it restores, learns, exports and refuses."""

from __future__ import annotations

import pytest
import torch
from helpers.restorers import NECKS, batch_of, detector_parts, restorer, segmentor_parts
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch.nn import functional as F

from fpt_plugin.commands.complexity.command import complexity
from fpt_plugin.pretraining.restoration_tail import apply_filters
from fpt_plugin.restoration.degradations import TASKS

necks = pytest.mark.parametrize('neck', NECKS)
hosts = pytest.mark.parametrize('parts', [detector_parts, segmentor_parts])


def without_gradient(model):
    return [name for name, p in model.named_parameters()
            if p.requires_grad and (p.grad is None or not p.grad.any())]


@hosts
@necks
@pytest.mark.parametrize('size', [(64, 64), (75, 101)])
def test_an_untrained_model_does_nothing(parts, neck, size):
    model = restorer(parts(neck)).eval()
    model.init_weights()
    inputs, samples = batch_of(size)
    assert torch.equal(model(inputs, samples), inputs)
    predicted = model(inputs, samples, mode='predict')
    for sample, image in zip(predicted, inputs):
        pixels = image * model.data_preprocessor.std + model.data_preprocessor.mean
        torch.testing.assert_close(sample.pred_img, pixels.flip(0))


@hosts
@necks
def test_every_parameter_learns(parts, neck):
    """In the second step, as the last convolutions start at zero."""
    model = restorer(parts(neck))
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        inputs, samples = batch_of((96, 128), batch=6)
        optimizer.zero_grad()
        loss = model(inputs, samples, mode='loss')['loss']
        loss.backward()
        # DDP takes what has a gradient, be it zero.
        assert all(p.grad is not None for p in model.parameters()
                   if p.requires_grad)
        optimizer.step()
    assert not without_gradient(model)


def test_one_task_trains_every_parameter():
    """No process of DDP waits for the gradients of other tasks."""
    model = restorer(detector_parts('FPT'))
    inputs, samples = batch_of((64, 64), tasks=['rain'])
    model(inputs, samples, mode='loss')['loss'].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_two_processes_of_different_tasks(tmp_path):
    from helpers.processes import together
    from helpers.restorers import in_two_processes
    first, second = together(in_two_processes, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_the_loss_is_the_error_over_that_of_doing_nothing():
    model = restorer(detector_parts('FPN'))
    inputs, samples = batch_of((64, 96))
    clean = torch.stack([s.gt_img for s in samples]).flip(1).float()
    clean = (clean - model.data_preprocessor.mean) / model.data_preprocessor.std
    inputs[1] = clean[1] + 0.001 * inputs[1]  # next to nothing to do
    before = (inputs - clean).square().mean((1, 2, 3))
    loss = model(inputs, samples, mode='loss')['loss']
    torch.testing.assert_close(loss, (1 + before[1] / 1e-4) / 2)
    with torch.no_grad():
        for parameter in model.tail.predict.parameters():
            parameter.normal_(std=0.02)
    restored = model.eval()(inputs, samples)
    loss = model(inputs, samples, mode='loss')['loss']
    error = (restored - clean).square().mean((1, 2, 3))
    torch.testing.assert_close(
        loss, (error[0] / before[0] + error[1] / 1e-4) / 2)
    assert not torch.equal(restored, inputs)


def test_the_task_matters():
    model = restorer(detector_parts('FPN')).eval()
    with torch.no_grad():
        model.tail.predict.weight.normal_(std=0.02)
        model.tail.task_embedding.weight.normal_()
    inputs, _ = batch_of((64, 64), batch=1)
    outs = [model.restore(inputs, torch.tensor([i])) for i in range(6)]
    assert all(not torch.equal(a, b) for i, a in enumerate(outs) for b in outs[:i])
    both = model.restore(inputs.expand(2, -1, -1, -1), torch.tensor([4, 1]))
    torch.testing.assert_close(both, torch.cat([outs[4], outs[1]]))


@pytest.mark.parametrize('side', [1, 3, 5])
@pytest.mark.parametrize('size', [(1, 1), (2, 7), (9, 8)])
def test_filters_are_those_of_unfolded_neighbours(side, size):
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(2, side**2, *size, dtype=torch.float64, requires_grad=True)
    padded = F.pad(images, [side // 2] * 4, mode='replicate')
    neighbours = F.unfold(padded, side).view(2, 3, side**2, *size)
    wanted = (neighbours * kernels[:, None]).sum(2)
    torch.testing.assert_close(apply_filters(images, kernels), wanted)
    grads, wanted = (torch.autograd.grad(x.square().sum(), [images, kernels])
                     for x in (apply_filters(images, kernels), wanted))
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize('size', [(64, 64), (33, 50)])
def test_the_tail_may_see_pixels(size):
    model = restorer(detector_parts('FPN'), tail=dict(channels=16, see_pixels=True))
    inputs, samples = batch_of(size)
    assert torch.equal(model(inputs, samples), inputs)
    for parameter in model.tail.predict.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model(inputs, samples, mode='loss')['loss'].backward()
    assert not without_gradient(model)
    # It has an effect beyond the filters' reach of two pixels.
    model.eval()
    changed = inputs.clone()
    changed[..., 0, 0] += 1
    maps = model.neck(model.backbone(inputs))
    tasks = torch.zeros(2, dtype=torch.long)
    seen = model.tail(maps, inputs, tasks) != model.tail(maps, changed, tasks)
    assert seen[..., :8, :8].any(1).all()  # the cell and its neighbours
    assert not seen[..., 8:, :].any() and not seen[..., 8:].any()


def test_bfloat16():
    model = restorer(segmentor_parts('FPT'))
    inputs, samples = batch_of((64, 64))
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(inputs, samples, mode='loss')['loss']
        loss.backward()
        restored = model.eval()(inputs, samples)
    assert loss.dtype == restored.dtype == torch.float32
    assert torch.equal(restored, inputs)


def test_batches_are_padded():
    """Images of several sizes: restored images have their own."""
    model = restorer(detector_parts('FPN')).eval()
    _, samples = batch_of((64, 64))
    samples[1].gt_img = samples[1].gt_img[:, :50, :60]
    data = dict(inputs=[s.gt_img.float() for s in samples], data_samples=samples)
    with torch.no_grad():
        for sample in model.val_step(data):
            torch.testing.assert_close(
                sample.pred_img, sample.gt_img.float(), rtol=0, atol=1e-3)
    assert model.train().parse_losses(model(
        **model.data_preprocessor(data), mode='loss'))[0] < 1e-5


def test_a_frozen_backbone_stays_as_it_is():
    model = restorer(detector_parts('FPT'), freeze_backbone=True).train()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert not any(m.training for m in model.backbone.modules())
    assert model.neck.training


def test_stages_freeze_before_ddp_counts():
    """mmdet's MobileNetV2 freezes its stages in train()."""
    parts = detector_parts('FPN')
    parts['backbone'] = dict(
        type='mmdet.MobileNetV2', out_indices=(1, 2, 4, 7), frozen_stages=2)
    parts['neck']['in_channels'] = [24, 32, 96, 1280]
    model = restorer(parts)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert any(name.startswith('backbone.layer2') for name in frozen)
    model.train()
    assert frozen == {
        name for name, p in model.named_parameters() if not p.requires_grad}


def test_a_list_of_necks():
    parts = detector_parts('FPN')
    fpt = dict(type='FPT', in_channels=8, out_channels=8, pyramid=None, num_levels=4,
               embed_channels=8)
    parts['neck'] = [parts['neck'], fpt]
    model = restorer(parts)
    inputs, samples = batch_of((64, 64))
    model(inputs, samples, mode='loss')['loss'].backward()
    assert any(key.startswith('neck.1.') for key in model.state_dict())


def test_identity_trains_the_branches_alone():
    model = restorer(detector_parts('FPT'), keep_identity=True)
    learning = {name.split('.')[1] if name.startswith('neck') else name.split('.')[0]
                for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {'self_transformers', 'grounding_transformers',
                        'rendering_transformers', 'fusions', 'tail'}
    assert not any(m.training for m in (model.backbone, model.neck.pyramid))
    assert 'keep_identity' in model.state_dict()
    assert 'keep_identity' not in restorer(detector_parts('FPT')).state_dict()


@pytest.mark.parametrize('change, text', [
    (dict(tasks='blur'), 'tasks must be one or several'),
    (dict(decode_head=dict(type='mmdet.RPNHead', in_channels=8)), 'ends with conv_seg'),
    (dict(tail=dict(kernel_size=4)), 'kernel_size must be odd'),
    (dict(tail=dict(channels=0)), 'channels must be at least 1'),
    (dict(neck=dict(type='mmdet.ChannelMapper', in_channels=[8, 16, 32, 64],
                    out_channels=8)), 'neck must have out_channels'),
])
def test_refused_arguments(change, text):
    with pytest.raises(ValueError, match=text):
        restorer(dict(detector_parts('FPN'), **change))


@pytest.mark.parametrize('make, text', [
    (lambda: segmentor_parts('FPT'), 'decode_head must be None'),
    (lambda: detector_parts('FPN'), 'must be an FPT for keep_identity=True, got FPN'),
    (lambda: dict(detector_parts('FPT'), neck=dict(
        detector_parts('FPT')['neck'], fusion='concat')), "fusion='residual'"),
])
def test_refused_identities(make, text):
    with pytest.raises((ValueError, TypeError), match=text):
        restorer(make(), keep_identity=True)


def test_refused_types():
    parts = detector_parts('FPN')
    with pytest.raises(TypeError, match='must be configs, got str'):
        restorer(dict(parts, backbone='mmdet.ResNet'))
    with pytest.raises(TypeError, match='keep_identity must be True or False'):
        restorer(parts, keep_identity='yes')


def test_refused_inputs():
    model = restorer(detector_parts('FPN'), tasks=['rain', 'sr2'])
    inputs, samples = batch_of((64, 64))
    with pytest.raises(ValueError, match="one of .'rain', 'sr2'.*got 'noise30'"):
        model(inputs, samples)
    with pytest.raises(ValueError, match='task of each of 2 images, got None'):
        model(inputs)
    with pytest.raises(ValueError, match='task of each of 2 images, got 1'):
        model(inputs, samples[:1])
    for sample in samples:
        sample.set_metainfo(dict(task='rain'))
    bare = [BaseDataElement() for _ in samples]
    with pytest.raises(ValueError, match='got None'):
        model(inputs, bare, mode='predict')
    assert torch.equal(model(inputs, bare), model(inputs, samples))
    with pytest.raises(ValueError, match='mode must be'):
        model(inputs, samples, mode='losses')
    with pytest.raises(TypeError, match='floating point'):
        model(inputs.long(), samples)
    with pytest.raises(ValueError, match='in_channels=3 channels'):
        model(inputs[:, :1], samples)
    for sample in samples:
        sample.gt_img = sample.gt_img[:, :32]
    with pytest.raises(ValueError, match='clean images must have the size'):
        model(inputs, samples, mode='loss')


@pytest.mark.parametrize('parts', [detector_parts, segmentor_parts])
def test_its_cost_is_counted(parts):
    model = restorer(parts('FPT'))
    cost = complexity(model, (64, 96))
    assert cost.total.macs > 0
    assert cost.total.parameters == sum(p.numel() for p in model.parameters())


def test_it_is_registered():
    assert MODELS.get('RestorationPretrainer') is type(
        restorer(detector_parts('FPN')))
    assert restorer(detector_parts('FPN')).tasks == tuple(TASKS)
