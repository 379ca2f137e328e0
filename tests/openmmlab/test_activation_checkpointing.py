"""Activation checkpointing changes no gradient and no state."""

import copy

import pytest
import torch
from helpers import processes, runs
from helpers.recomputed_nets import BACKBONES, Net, of_ddp, steps
from helpers.square_detector import DETECTOR
from helpers.synthetic_data import write_coco_squares
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.runner.activation_checkpointing import (
    turn_on_activation_checkpointing,
)

# Parts of the model that are checkpointed.
PARTS = {
    'neck': ['neck'],
    'backbone': 'backbone',
    'both': ['backbone', 'neck'],
    'a stage': ['backbone.layer2'],
    'a stage of a wrapped backbone': ['backbone.layer2', 'backbone'],
    'twice': ['neck', 'neck'],
    'a branch': ['neck.self_transformers.0_0'],
    'branches of all kinds': [
        'neck.grounding_transformers.1_2', 'neck.rendering_transformers.2_1',
        'neck.pyramid', 'neck'],
    'a pyramid': 'neck.pyramid',
    'lists of modules': ['neck.self_transformers', 'neck.fusions'],
}
ALL = ['backbone', 'neck', 'norms']


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert all(g is not None for step in want[0] for g in step.values())


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('autocast', [False, True])
def test_backbones_are_trained_as_without(backbone, autocast):
    net = Net(backbone)
    assert_same(steps(copy.deepcopy(net), ALL, autocast=autocast),
                steps(net, autocast=autocast))


@pytest.mark.parametrize('parts', PARTS.values(), ids=PARTS)
def test_parts_are_trained_as_without(parts):
    net = Net()
    assert_same(steps(copy.deepcopy(net), parts), steps(net))


@pytest.mark.slow
def test_processes_are_trained_as_without(tmp_path):
    for without, wrapped in processes.together(of_ddp, ALL, folder=tmp_path):
        assert_same(wrapped, without)


def test_backward_twice_through_one_graph():
    net = Net()
    turn_on_activation_checkpointing(net, ALL)
    loss = net(torch.randn(2, 3, 64, 64))
    found = []
    for _ in range(2):
        net.zero_grad()
        loss.backward(retain_graph=True)
        found.append({n: p.grad for n, p in net.named_parameters()})
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_fewer_activations_are_saved():

    def saved(parts):
        net = Net()
        turn_on_activation_checkpointing(net, parts)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.append(x.numel()) or x, lambda x: x):
            net(torch.randn(2, 3, 64, 64))
        with torch.no_grad():
            assert net.backbone(torch.randn(1, 3, 64, 64))[0].grad_fn is None
        return sum(sizes)

    assert saved(['backbone', 'neck']) < saved([]) / 3


@pytest.mark.slow
def test_compiled_models_are_trained_as_without():
    net = Net().train()
    torch._dynamo.reset()
    wrapped = copy.deepcopy(net)
    turn_on_activation_checkpointing(wrapped, 'backbone')
    x = torch.randn(2, 3, 64, 64)
    net.backbone(x)[-1].square().mean().backward()
    torch.compile(wrapped.backbone, backend='aot_eager')(
        x)[-1].square().mean().backward()
    for ours, plain in zip(wrapped.backbone.parameters(),
                           net.backbone.parameters()):
        torch.testing.assert_close(ours.grad, plain.grad)
    torch.testing.assert_close(dict(wrapped.backbone.named_buffers()),
                               dict(net.backbone.named_buffers()))


def test_trainings_by_a_config_are_the_same(tmp_path):
    write_coco_squares(tmp_path / 'data', count=4)

    def train(**settings):
        cfg = Config.fromstring(DETECTOR, '.py')
        cfg.merge_from_dict(dict(
            settings, work_dir=str(tmp_path / 'run'), log_level='ERROR',
            val_dataloader=None, val_cfg=None, val_evaluator=None,
            default_hooks=dict(checkpoint=dict(interval=9)),
            train_dataloader=dict(
                dataset=dict(data_root=str(tmp_path / 'data')))))
        cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
        cfg.model.backbone.norm_eval = False
        del cfg.default_hooks.visualization
        with runs.alone():
            return Runner.from_cfg(cfg).train().state_dict()

    plain = train()
    for parts in ('backbone', ['neck'], ['neck.self_transformers.0_0', 'bbox_head']):
        torch.testing.assert_close(
            train(activation_checkpointing=parts), plain, rtol=0, atol=0)
