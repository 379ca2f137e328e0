"""RestorationPretrainer: outputs, loss, trained parameters and bad input."""

from __future__ import annotations

import pytest
import torch
from helpers.learning import without_gradient
from helpers.restorers import NECKS, batch_of, detector_parts, restorer, segmentor_parts
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch.nn import functional as F

from fpt_plugin.commands.complexity.command import complexity
from fpt_plugin.pretraining.restoration_tail import apply_filters
from fpt_plugin.restoration.degradations import TASKS

necks = pytest.mark.parametrize('neck', NECKS)
libraries = pytest.mark.parametrize('parts', [detector_parts, segmentor_parts])


@libraries
@necks
@pytest.mark.parametrize('size', [(64, 64), (75, 101)])
def test_an_untrained_model_returns_its_input(parts, neck, size):
    model = restorer(parts(neck)).eval()
    model.init_weights()
    inputs, samples = batch_of(size)
    assert torch.equal(model(inputs, samples), inputs)
    predicted = model(inputs, samples, mode='predict')
    for sample, image in zip(predicted, inputs):
        pixels = image * model.data_preprocessor.std + model.data_preprocessor.mean
        torch.testing.assert_close(sample.pred_img, pixels.flip(0))


@libraries
@necks
def test_every_parameter_learns(parts, neck):
    """From the second step, because the last convolutions start at zero."""
    model = restorer(parts(neck))
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        inputs, samples = batch_of((96, 128), batch=6)
        optimizer.zero_grad()
        loss = model(inputs, samples, mode='loss')['loss']
        loss.backward()
        # For DDP a gradient of zero is enough.
        assert without_gradient(model, zero=True) == []
        optimizer.step()
    assert without_gradient(model) == []


def test_one_task_trains_every_parameter():
    """Otherwise DDP would wait for the gradients of other tasks."""
    model = restorer(detector_parts('FPT'))
    inputs, samples = batch_of((64, 64), tasks=['rain'])
    model(inputs, samples, mode='loss')['loss'].backward()
    assert without_gradient(model, zero=True) == []


@pytest.mark.slow
def test_two_processes_with_different_tasks(tmp_path):
    from helpers.processes import together
    from helpers.restorers import in_two_processes
    first, second = together(in_two_processes, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_the_loss_is_the_change_of_the_psnr():
    model = restorer(detector_parts('FPN'))
    inputs, samples = batch_of((64, 96))
    clean = torch.stack([s.gt_img for s in samples]).flip(1).float()
    clean = (clean - model.data_preprocessor.mean) / model.data_preprocessor.std
    inputs[1] = clean[1] + 0.001 * inputs[1]  # almost clean
    before = (inputs - clean).square().mean((1, 2, 3))
    assert model(inputs, samples, mode='loss')['loss'] == 0
    with torch.no_grad():
        for parameter in model.tail.predict.parameters():
            parameter.normal_(std=0.02)
    restored = model.eval()(inputs, samples)
    loss = model(inputs, samples, mode='loss')['loss']
    error = (restored - clean).square().mean((1, 2, 3))
    torch.testing.assert_close(
        loss, 5 * (error[0] / before[0]).log10()
        + 5 * ((error[1] + 1e-4) / (before[1] + 1e-4)).log10(), rtol=1e-3, atol=1e-3)
    assert not torch.equal(restored, inputs)


def test_the_output_depends_on_the_task():
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
def test_filters_equal_unfolded_neighbours(side, size):
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(2, side**2, *size, dtype=torch.float64, requires_grad=True)
    padded = F.pad(images, [side // 2] * 4, mode='replicate')
    neighbours = F.unfold(padded, side).view(2, 3, side**2, *size)
    expected = (neighbours * kernels[:, None]).sum(2)
    torch.testing.assert_close(apply_filters(images, kernels), expected)
    grads, expected = (torch.autograd.grad(x.square().sum(), [images, kernels])
                     for x in (apply_filters(images, kernels), expected))
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize('size', [(64, 64), (33, 50)])
def test_a_tail_that_reads_pixels(size):
    model = restorer(detector_parts('FPN'), tail=dict(channels=16, see_pixels=True))
    inputs, samples = batch_of(size)
    assert torch.equal(model(inputs, samples), inputs)
    for parameter in model.tail.predict.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model(inputs, samples, mode='loss')['loss'].backward()
    assert without_gradient(model) == []
    # A pixel changes the whole cell, beyond the two pixels of the filters.
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


def test_restored_images_of_a_padded_batch_have_their_own_size():
    model = restorer(detector_parts('FPN')).eval()
    _, samples = batch_of((64, 64))
    samples[1].gt_img = samples[1].gt_img[:, :50, :60]
    data = dict(inputs=[s.gt_img.float() for s in samples], data_samples=samples)
    with torch.no_grad():
        for sample in model.val_step(data):
            torch.testing.assert_close(
                sample.pred_img, sample.gt_img.float(), rtol=0, atol=1e-3)
    assert model.train().parse_losses(model(
        **model.data_preprocessor(data), mode='loss'))[0] == 0


def test_stages_are_frozen_in_the_constructor():
    """DDP reads requires_grad before train(), where mmdet's MobileNetV2 sets it."""
    model = restorer(detector_parts('FPT'), freeze_backbone=True).train()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert not any(m.training for m in model.backbone.modules())
    assert model.neck.training
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


def test_keep_identity_trains_only_branches_and_tail():
    model = restorer(detector_parts('FPT'), keep_identity=True)
    trained = {name.split('.')[1] if name.startswith('neck') else name.split('.')[0]
               for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'self_transformers', 'grounding_transformers',
                       'rendering_transformers', 'fusions', 'tail'}
    assert not any(m.training for m in (model.backbone, model.neck.pyramid))
    assert 'keep_identity' in model.state_dict()
    assert 'keep_identity' not in restorer(detector_parts('FPT')).state_dict()


CHANNEL_MAPPER = dict(type='mmdet.ChannelMapper', in_channels=[8, 16, 32, 64],
                      out_channels=8)
FPT_NECK = detector_parts('FPT')['neck']
IDENTITY = dict(keep_identity=True)


@pytest.mark.parametrize('parts, change, error, text', [
    (detector_parts, dict(tasks='blur'), ValueError, 'tasks must be one or several'),
    (detector_parts, dict(decode_head=dict(type='mmdet.RPNHead', in_channels=8)),
     ValueError, 'ends with conv_seg'),
    (detector_parts, dict(tail=dict(kernel_size=4)), ValueError, 'size must be odd'),
    (detector_parts, dict(tail=dict(channels=0)), ValueError, 'channels must be at'),
    (detector_parts, dict(neck=CHANNEL_MAPPER), ValueError, 'must have out_channels'),
    (detector_parts, dict(backbone='mmdet.ResNet'), TypeError, 'configs, got str'),
    (detector_parts, dict(keep_identity='yes'), TypeError, 'keep_identity must be'),
    (segmentor_parts, dict(IDENTITY, neck=FPT_NECK), ValueError,
     'decode_head must be None'),
    (detector_parts, IDENTITY, ValueError, 'FPT for keep_identity=True, got FPN'),
    (detector_parts, dict(IDENTITY, neck=dict(FPT_NECK, fusion='concat')), ValueError,
     "fusion='residual'"),
])
def test_bad_arguments(parts, change, error, text):
    with pytest.raises(error, match=text):
        restorer(dict(parts('FPN'), **change))


def test_bad_inputs():
    model = restorer(detector_parts('FPN'), tasks=['rain', 'sr2'])
    inputs, samples = batch_of((64, 64))
    with pytest.raises(ValueError, match="one of .'rain', 'sr2'.*got 'noise30'"):
        model(inputs, samples)
    with pytest.raises(ValueError, match='task of each of the 2 images, got None'):
        model(inputs)
    with pytest.raises(ValueError, match='task of each of the 2 images, got 1'):
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


@libraries
def test_its_cost_is_counted(parts):
    model = restorer(parts('FPT'))
    cost = complexity(model, (64, 96))
    assert cost.total.macs > 0
    assert cost.total.parameters == sum(p.numel() for p in model.parameters())
    assert MODELS.get('RestorationPretrainer') is type(model)
    assert model.tasks == tuple(TASKS)
