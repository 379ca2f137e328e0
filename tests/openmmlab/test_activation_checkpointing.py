"""Recomputing in the backward pass changes no gradient and no state."""

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

# Where the wrapping begins, and which parts of the model are named.
NAMED = {
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
    'the whole': ['backbone', 'neck', 'norms'],
}


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert all(g is not None for step in want[0] for g in step.values())


@pytest.mark.parametrize('backbone', BACKBONES)
def test_backbones_learn_as_without(backbone):
    net = Net(backbone)
    assert_same(steps(copy.deepcopy(net), NAMED['the whole']), steps(net))


@pytest.mark.parametrize('named', NAMED.values(), ids=NAMED)
def test_parts_learn_as_without(named):
    net = Net()
    assert_same(steps(copy.deepcopy(net), named), steps(net))


def test_bfloat16_learns_as_without():
    net = Net()
    assert_same(steps(copy.deepcopy(net), NAMED['the whole'], autocast=True),
                steps(net, autocast=True))


@pytest.mark.slow
def test_processes_learn_as_without(tmp_path):
    for without, wrapped in processes.together(
            of_ddp, NAMED['the whole'], folder=tmp_path):
        assert_same(wrapped, without)


def test_graphs_that_are_run_through_twice():
    net = Net()
    turn_on_activation_checkpointing(net, ['backbone', 'neck', 'norms'])
    loss = net(torch.randn(2, 3, 64, 64))
    found = []
    for _ in range(2):
        net.zero_grad()
        loss.backward(retain_graph=True)
        found.append({n: p.grad for n, p in net.named_parameters()})
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_nothing_is_kept_for_a_prediction():
    net = Net()
    turn_on_activation_checkpointing(net, 'backbone')
    with torch.no_grad():
        assert net.backbone(torch.randn(1, 3, 64, 64))[0].grad_fn is None


def test_activations_are_not_kept():
    """What it is for."""
    def saved(named):
        net = Net()
        if named:
            turn_on_activation_checkpointing(net, named)
        count = 0

        def pack(x):
            nonlocal count
            count += x.numel()
            return x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            net(torch.randn(2, 3, 64, 64))
        return count

    assert saved(['backbone', 'neck']) < saved(None) / 3


@pytest.mark.slow
def test_compiled_models_learn_as_without():
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


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    """Train by mmengine's own runner, through a config; the weights."""
    folder = tmp_path_factory.mktemp('squares')
    write_coco_squares(folder / 'data', count=4)

    def run(**settings):
        cfg = Config.fromstring(DETECTOR, '.py')
        cfg.merge_from_dict(dict(
            settings, work_dir=str(folder / 'run'), log_level='ERROR',
            val_dataloader=None, val_cfg=None, val_evaluator=None,
            default_hooks=dict(checkpoint=dict(interval=9)),
            train_dataloader=dict(
                dataset=dict(data_root=str(folder / 'data')))))
        cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
        cfg.model.backbone.norm_eval = False
        del cfg.default_hooks.visualization
        with runs.alone():
            return Runner.from_cfg(cfg).train().state_dict()

    return run


@pytest.fixture(scope='module')
def trained(train):
    return train()


@pytest.mark.parametrize('named', [
    'backbone', ['neck'], ['neck.self_transformers.0_0', 'bbox_head']])
def test_a_training_is_the_same(train, trained, named):
    torch.testing.assert_close(
        train(activation_checkpointing=named), trained, rtol=0, atol=0)
