"""TrainGraftOnlyHook with wrapped models; the tests of graft train with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from helpers.processes import together
from helpers.sharded_grafts import refusals_and_training
from mmengine.registry import MODELS
from torch import nn

from fpt_plugin import FPT, TrainGraftOnlyHook
from fpt_plugin.engine.grafts import new_modules, new_parameters


def test_fsdp_trains_single_parameters_and_rejects_flattened_ones(tmp_path):
    """With several choices of units."""
    for errors, names in together(refusals_and_training, folder=tmp_path):
        assert len(errors) == 6
        assert all('use_orig_params=True' in message for message in errors)
        assert names['learning'] == names['moved'] == names['new']


@pytest.mark.parametrize('neck', ['SelfTransformerNeck', 'FPT'])
def test_an_fpt_without_branches_is_rejected(neck):
    branches = {} if neck != 'FPT' else dict(
        grounding_transformer=None, rendering_transformer=None)
    model = MODELS.build(dict(
        type=neck, in_channels=8, out_channels=8, num_levels=2, pyramid=None,
        self_transformer=None, **branches))
    assert isinstance(model, FPT) and not list(model.parameters())
    for plain in (model, nn.Linear(1, 1)):
        with pytest.raises(ValueError, match='FPT'):
            TrainGraftOnlyHook().before_train(SimpleNamespace(model=plain))


def test_new_parameters_of_a_pyramid_of_fpt():
    """Both FPTs are new, the innermost pyramid is not."""
    model = FPT([8, 8], 8, num_outs=2, num_levels=2, pyramid=dict(
        type='FPT', pyramid=dict(type='BottomUpPyramid')))
    new = {id(p) for p in new_parameters(model, ['FPT'], 'this test')}
    names = {n for n, p in model.named_parameters() if id(p) not in new}
    assert names and all(n.startswith('pyramid.pyramid.') for n in names)
    assert new_modules(nn.Linear(1, 1)) == []
