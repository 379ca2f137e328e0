"""Layers on a GPU against their formulas, in each precision of training."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.layer_formulas import FORMULAS
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
# Layer, and sizes of its maps.
LAYERS = {
    'self': (partial(SelfTransformer, 12, 8), [(7, 9)]),
    'self pooled': (partial(SelfTransformer, 12, 8, key_stride=2), [(7, 9)]),
    'self pixel': (partial(SelfTransformer, 12, 8), [(1, 1)]),
    'grounding': (partial(GroundingTransformer, 12, 8), [(7, 9), (4, 5)]),
    'grounding pixel': (partial(GroundingTransformer, 12, 8), [(3, 1), (1, 1)]),
    'local': (
        partial(LocalGroundingTransformer, 12, 8, window=3), [(7, 9), (4, 5)]),
    'local mask': (
        partial(LocalGroundingTransformer, 12, 8, pad='mask'), [(6, 5), (6, 5)]),
    'rendering': (partial(RenderingTransformer, 12, 8), [(4, 5), (7, 9)]),
    'rendering far': (partial(RenderingTransformer, 12, 8), [(1, 1), (9, 5)]),
    'lambda': (
        partial(LambdaLayer, 12, 16, query_depth=4, context_size=5), [(7, 9)]),
    'lambda intra': (
        partial(LambdaLayer, 12, query_depth=3, intra_depth=2, context_size=7,
                content_bias=True, residual=True), [(5, 4)]),
}


def make(name, device, batch=2, format=torch.contiguous_format):
    """Return a layer with norms in evaluation mode, and its maps."""
    create, sizes = LAYERS[name]
    layer = randomise(create()).to(device, memory_format=format)
    maps = [x.to(device, memory_format=format)
            for x in maps_of(*sizes, batch=batch)]
    return settle_norms(layer, *maps), maps


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('format', FORMATS, ids=str)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_layer(device, precision, format, batch, name):
    layer, maps = make(name, device, batch, format)
    want = Trained.by_formula(FORMULAS[type(layer)], double(layer), maps)
    got = Trained(layer, maps, precision)
    agree(got, want, TOLERANCES[precision])


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_layer_does_not_wait(device, no_sync, precision, name):
    layer, maps = make(name, device)
    Trained(layer, maps, precision)
    with no_sync():
        Trained(layer, maps, precision)
