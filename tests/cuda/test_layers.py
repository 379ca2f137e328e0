"""Layers on a GPU, in each precision of training, against the formulas."""

from __future__ import annotations

import pytest
import torch
from helpers import layer_formulas
from helpers.mixed_precision import PRECISIONS, TOLERANCES, Trained, agree, double
from helpers.oracles import maps_of, randomise, settle_norms

from fpt_plugin.layers import (
    GroundingTransformer,
    LambdaLayer,
    LocalGroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)

pytestmark = pytest.mark.cuda

FORMATS = [torch.contiguous_format, torch.channels_last]
# Layer, formula, sizes of its maps.
LAYERS = {
    'self': (lambda: SelfTransformer(12, 8), layer_formulas.self_transformer,
             [(7, 9)]),
    'self pooled': (
        lambda: SelfTransformer(12, 8, key_stride=2),
        layer_formulas.self_transformer, [(7, 9)]),
    'self pixel': (
        lambda: SelfTransformer(12, 8), layer_formulas.self_transformer,
        [(1, 1)]),
    'grounding': (
        lambda: GroundingTransformer(12, 8),
        layer_formulas.grounding_transformer, [(7, 9), (4, 5)]),
    'grounding pixel': (
        lambda: GroundingTransformer(12, 8),
        layer_formulas.grounding_transformer, [(3, 1), (1, 1)]),
    'local': (
        lambda: LocalGroundingTransformer(12, 8, window=3),
        layer_formulas.local_grounding_transformer, [(7, 9), (4, 5)]),
    'local mask': (
        lambda: LocalGroundingTransformer(12, 8, window=5, pad='mask'),
        layer_formulas.local_grounding_transformer, [(6, 5), (6, 5)]),
    'rendering': (
        lambda: RenderingTransformer(12, 8),
        layer_formulas.rendering_transformer, [(4, 5), (7, 9)]),
    'rendering far': (
        lambda: RenderingTransformer(12, 8),
        layer_formulas.rendering_transformer, [(1, 1), (9, 5)]),
    'lambda': (
        lambda: LambdaLayer(12, 16, query_depth=4, context_size=5),
        layer_formulas.lambda_layer, [(7, 9)]),
    'lambda intra': (
        lambda: LambdaLayer(12, query_depth=3, intra_depth=2, context_size=7,
                            content_bias=True, residual=True),
        layer_formulas.lambda_layer, [(5, 4)]),
}


def make(name, device, batch=2, format=torch.contiguous_format):
    """The layer in evaluation of its norms, its formula, its maps."""
    create, formula, sizes = LAYERS[name]
    layer = randomise(create()).to(device, memory_format=format)
    maps = [x.to(device, memory_format=format)
            for x in maps_of(*sizes, batch=batch)]
    return settle_norms(layer, *maps), formula, maps


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('format', FORMATS, ids=str)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_layer(device, precision, format, batch, name):
    layer, formula, maps = make(name, device, batch, format)
    want = Trained.by_formula(formula, double(layer), maps)
    got = Trained(layer, maps, precision)
    agree(got, want, TOLERANCES[precision])


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_layer_does_not_wait(device, no_sync, precision, name):
    layer, _, maps = make(name, device)
    Trained(layer, maps, precision)
    with no_sync():
        Trained(layer, maps, precision)
