"""Attention maps equal the attention of the models' layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.attention_models import MODELS, UFP, config, prepared
from helpers.oracles import relative_error

from fpt_plugin import FPT
from fpt_plugin.commands.visualize_attention.maps import (
    attention_branches,
    chosen_level,
    level_names,
)
from fpt_plugin.commands.visualize_attention.model import branch_inputs, outermost_fpts
from fpt_plugin.layers.mixture import pool_keys

POINTS = [(0, 0), (109, 69), (60, 31)]


def outputs(model, view):
    """Record inputs and outputs of the branches of the last FPT in a pass."""
    runs, handles = [], []
    for fpt in model.modules():
        if not isinstance(fpt, FPT):
            continue
        handles.append(fpt.register_forward_pre_hook(
            lambda fpt, _: runs.append((fpt, {}))))
        for kind in (fpt.self_transformers, fpt.grounding_transformers,
                     fpt.rendering_transformers):
            for name, layer in kind.items():
                handles.append(layer.register_forward_hook(
                    lambda layer, args, kwargs, out, name=name, fpt=fpt:
                    next(run for owner, run in reversed(runs)
                         if owner is fpt).update({name: (args, out)}),
                    with_kwargs=True))
    with torch.no_grad():
        model.extract_feat(view.inputs)
    for handle in handles:
        handle.remove()
    fpts = [fpt for fpt, _ in runs]
    last = [fpt for fpt in outermost_fpts(model) if fpt in fpts][-1]
    return last, next(run for fpt, run in reversed(runs) if fpt is last)


@pytest.mark.parametrize('name', MODELS)
def test_maps_give_the_outputs_of_the_model(name, image):
    model, views = prepared(MODELS[name](), image)
    branches = attention_branches(model, views, POINTS)
    used = {id(a.view) for b in branches for a in b.attentions} or {0}
    recorded = {}
    for index, point in enumerate(POINTS):
        attention = next((b.attentions[index] for b in branches if b.attentions), None)
        view = attention.view if attention else views[0]
        if id(view) not in recorded:
            recorded[id(view)] = outputs(model, view)
        fpt, run = recorded[id(view)]
        assert len(branches) == len(run)
        for branch in branches:
            key = '{}_{}'.format(*branch.place)
            (x, *source), out = run[key]
            source = source[0] if source else x
            if branch.name == 'RT':
                want = fpt.rendering_transformers[key].channel_weights(source)
                errors = [relative_error(torch.from_numpy(w), want.flatten())
                          for w in branch.channel_weights]
                assert min(errors) <= 1e-5 and len(errors) == len(used)
                continue
            layers = fpt.self_transformers if branch.name == 'ST' \
                else fpt.grounding_transformers
            attention, stride = branch.attentions[index], branch.key_stride
            assert attention.point == point
            assert attention.size == tuple(x.shape[2:])
            assert attention.weights.shape == tuple(source.shape[2:])
            weights = torch.from_numpy(attention.weights[::stride, ::stride])
            with torch.no_grad():
                value = layers[key].value(pool_keys(source, stride))[0]
            row, column = attention.cell
            got = (weights * value).sum((1, 2))
            assert relative_error(got, out[0, :, row, column]) <= 1e-4
            total = weights.sum().item() + attention.outside
            assert total == pytest.approx(1, abs=1e-5)
            assert attention.peak == pytest.approx(weights.max().item())
            assert attention.keys > 0
    assert {branch.name for branch in branches} == {
        'st': {'ST'}, 'gt': {'GT'}, 'rt': {'RT'}, 'lgt': {'ST', 'LGT', 'RT'},
        'ufp': {'ST', 'LGT', 'RT'}, 'light': {'ST'}
    }.get(name, {'ST', 'GT', 'RT'})
    assert (len(recorded) > 1) == (name == 'sliding')
    if name == 'odd_strides':
        assert {b.key_stride for b in branches if b.attentions} == {3, 2, 1}


def test_the_pass_stops_before_the_branches(image, monkeypatch):
    model, views = prepared(config(), image)
    monkeypatch.setattr(FPT, '_transform', None)
    fpt, = outermost_fpts(model)
    for layer in [*fpt.self_transformers.values(),
                  *fpt.grounding_transformers.values()]:
        monkeypatch.setattr(type(layer), 'forward', None)
    branches = attention_branches(model, views, POINTS[:1])
    assert len(branches) == 4 + 3 + 3  # P2 has no GT, and is not read by RT
    assert not fpt._forward_pre_hooks


def test_one_level(image):
    model, views = prepared(config(), image)
    every = {b.title: b for b in attention_branches(model, views, POINTS)}
    assert list(every)[:4] == ['ST P2', 'ST P3', 'GT P3 <- P4', 'GT P3 <- P5']
    some = attention_branches(model, views, POINTS, '4')
    assert [b.title for b in some] == ['ST P4', 'GT P4 <- P5', 'RT P4 <- P3']
    for branch in some:
        for a, b in zip(branch.attentions, every[branch.title].attentions):
            assert np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize('neck, level, message', [
    ({}, 'P6', 'transforms, P2, P3, P4, P5, got P6'),
    (dict(first_level=1), 'P2', 'transforms, P3, P4, P5, got P2'),
    (dict(type='GroundingTransformerNeck'), 'P5', 'got none at P5'),
    (dict(type='RenderingTransformerNeck'), 'P3', 'got none at P3'),
])
def test_a_level_without_branches(neck, level, message, image):
    model, views = prepared(config(**neck), image)
    with pytest.raises(ValueError, match=message):
        attention_branches(model, views, POINTS, level)


def test_windows(image):
    model, views = prepared(config(UFP), image)
    branch = next(b for b in attention_branches(model, views, POINTS)
                  if b.title == 'LGT P3a <- P3c')
    corner, _, middle = branch.attentions
    row, column = middle.cell
    assert middle.window == (row - 2, column - 2, row + 3, column + 3)
    assert middle.outside == pytest.approx(0, abs=1e-6)
    assert corner.window == (-2, -2, 3, 3) and corner.outside > 0.01
    inside = np.zeros(middle.weights.shape, bool)
    inside[row - 2:row + 3, column - 2:column + 3] = True
    assert middle.weights[inside].min() > 0 and not middle.weights[~inside].any()
    assert corner.keys == middle.keys == 25
    model, views = prepared(MODELS['lgt'](), image)
    corner = attention_branches(model, views, POINTS, 'P3')[1].attentions[0]
    assert corner.keys == 4 and corner.outside == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('sizes, inputs, names', [
    ([(200, 336), (100, 168), (50, 84), (25, 42)], (800, 1344),
     ['P2', 'P3', 'P4', 'P5']),
    ([(97, 97)] * 4, (769, 769), ['P3a', 'P3b', 'P3c', 'P3d']),
    ([(25, 9), (13, 5), (7, 3), (4, 2)], (100, 33), ['P2', 'P3', 'P4', 'P5']),
    ([(12, 16), (12, 16), (3, 4)], (96, 128), ['P3a', 'P3b', 'P5']),
    ([(1, 1)], (1, 1), ['P0']),
])
def test_level_names(sizes, inputs, names):
    assert level_names(sizes, inputs) == names
    assert chosen_level(None, names) is None
    for name in (names[-1], names[-1].lower(), names[-1][1:]):
        assert chosen_level(name, names) == len(names) - 1
    with pytest.raises(ValueError, match=f'{", ".join(names)}, got 7'):
        chosen_level('7', names)


def test_an_unused_fpt(image):
    model, views = prepared(config(), image)
    model.spare, model.neck = model.neck, torch.nn.Identity()
    with pytest.raises(ValueError, match='is not used'):
        branch_inputs(model, views[0].inputs)
