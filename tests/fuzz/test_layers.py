"""The layers against their formulas, with random arguments and maps.

Outputs, and gradients of maps and parameters, in all dtypes and under autocast.
"""

import copy

import pytest
import torch
from helpers import layer_formulas as formulas
from helpers.fuzz_cases import (
    assert_agree,
    batches,
    draw_tensors,
    exact_twin,
    layouts,
    leaf,
    lengths,
    run_cases,
    seeds,
    sizes,
)
from helpers.oracles import randomise
from hypothesis import strategies as st

from fpt_plugin.layers import (
    GroundingTransformer,
    LambdaLayer,
    LocalGroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)

# Dtype of layer and maps, and tolerance: in half precision the projections are
# rounded.
MODES = {
    'float32': (torch.float32, 2e-5),
    'float64': (torch.float64, 1e-10),
    'bfloat16': (torch.bfloat16, 0.1),
    'float16': (torch.float16, 0.02),
    'autocast': (torch.float32, 0.1),
}
modes = st.sampled_from(['float32', 'float32', 'float64', *MODES])
scales = st.sampled_from([None, None, 1.0, 0.25])
common = dict(
    mode=modes,
    batch=batches,
    channels=st.integers(1, 6),
    seed=seeds,
    # which maps and then which parameters need a gradient
    learns=st.one_of(
        st.just([True] * 16), st.lists(st.booleans(), min_size=16,
                                       max_size=16)),
    layouts=st.tuples(layouts, layouts, layouts))


def mixtures():
    """Draw (N, E) with E a multiple of N."""
    return st.integers(1, 4).flatmap(lambda n: st.tuples(
        st.just(n), st.integers(1, 3).map(lambda d: d * n)))


def check_layer(layer, formula, shapes, mode, seed, learns, layouts,
                formula_args=(), **options):
    """Compare output and all gradients of one call with the formula.

    Args:
        layer: A float32 layer with random parameters.
        formula: ``formula(layer, *maps, *formula_args)``.
        shapes: Shapes of the maps.
        mode: A key of MODES.
        seed: Seed of the maps.
        learns: Whether each map and then each parameter needs a gradient.
        layouts: Layouts of the maps and of the output's gradient.
        formula_args: Further arguments of the formula.
        options: Further arguments of the layer's forward.
    """
    dtype, tolerance = MODES[mode]
    layer.to(dtype)
    maps = [
        leaf(x, (dtype, layout, learn)) for x, layout, learn in zip(
            draw_tensors(seed, *shapes), layouts, learns)
    ]
    for parameter, learn in zip(layer.parameters(), learns[2:]):
        parameter.requires_grad_(learn)
    leaves = {f'map {i}': x for i, x in enumerate(maps)}
    exact_leaves = {name: exact_twin(x) for name, x in leaves.items()}
    exact = copy.deepcopy(layer).double().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=mode == 'autocast'):
        got = layer(*maps, **options)
    want = formula(exact, *exact_leaves.values(), *formula_args)
    # Norms after the layer need usual strides: see LambdaLayer.forward.
    if got.shape[0] and all(x.stride() in usual_strides(x) for x in maps):
        assert got.stride() in usual_strides(got)
    leaves.update(layer.named_parameters())
    exact_leaves.update(exact.named_parameters())
    assert_agree([got], [want], leaves, exact_leaves, tolerance,
                 (seed + 1, layouts[-1]))


def usual_strides(x):
    """Return the strides of contiguous maps and of those in channels_last."""
    return [torch.empty(x.shape, device='meta', memory_format=format).stride()
            for format in (torch.contiguous_format, torch.channels_last)]


def run_pooled(cls, formula, cases, **map_sizes):
    """Run cases of a layer with pooled keys."""

    def check(batch, channels, mixture, key_stride, override, scale, seed, **case):
        parts, embed = mixture
        layer = randomise(cls(channels, embed, parts, key_stride, scale), seed)
        shapes = [(batch, channels, *case.pop(name)) for name in map_sizes]
        stride = key_stride if override is None else override
        check_layer(layer, formula, shapes, seed=seed, key_stride=override,
                    formula_args=(stride, ), **case)

    strides = st.integers(1, 9)
    run_cases(check, cases, **common, **map_sizes, mixture=mixtures(),
              key_stride=strides, override=st.none() | strides, scale=scales)


@lengths('self_transformer')
def test_self_transformer(cases):
    run_pooled(SelfTransformer, formulas.self_transformer, cases, size=sizes())


@lengths('grounding_transformer')
def test_grounding_transformer(cases):
    run_pooled(GroundingTransformer, formulas.grounding_transformer, cases,
               fine=sizes(), coarse=sizes())


@lengths('local_grounding_transformer')
def test_local_grounding_transformer(cases):

    def check(batch, channels, mixture, fine, coarse, window, pad, scale, seed,
              **case):
        parts, embed = mixture
        layer = randomise(
            LocalGroundingTransformer(channels, embed, parts, window, pad,
                                      scale), seed)
        check_layer(
            layer, formulas.local_grounding_transformer,
            [(batch, channels, *fine), (batch, channels, *coarse)],
            seed=seed, **case)

    run_cases(check, cases, **common, mixture=mixtures(), fine=sizes(),
              coarse=sizes(), window=st.sampled_from([1, 3, 5, 7]),
              pad=st.sampled_from(['zero', 'mask']), scale=scales)


@lengths('rendering_transformer')
def test_rendering_transformer(cases):

    def check(batch, channels, embed, fine, coarse, seed, mode, **case):
        layer = randomise(RenderingTransformer(channels, embed), seed)
        dtype = torch.float64 if mode == 'float64' else torch.float32
        check_layer(
            layer, formulas.rendering_transformer,
            [(batch, channels, *coarse), (batch, channels, *fine)],
            seed=seed, mode=mode, formula_args=(dtype, ), **case)

    run_cases(check, cases, **common, embed=st.none() | st.integers(1, 6),
              fine=sizes(), coarse=sizes())


@lengths('lambda_layer')
def test_lambda_layer(cases):

    def check(batch, channels, heads, value_depth, query_depth, intra_depth,
              context, content_bias, residual, norm, size, seed, **case):
        out_channels = heads * value_depth
        if norm['type'] == 'GN' and not (case['learns'][0]
                                         or case['learns'][3]):
            # torch 2.13 crashes in the backward pass of a group norm if its
            # channels_last input needs no gradient, so the projection gets one.
            case['learns'] = [*case['learns'][:3], True, *case['learns'][4:]]
        if batch == 1 and 1 in size:
            # torch's batch norm confuses the memory formats of such maps
            batch = 2
        layer = LambdaLayer(
            out_channels if residual else channels, out_channels, heads,
            query_depth, intra_depth, context, content_bias, residual, norm)
        randomise(layer, seed).eval()
        for name, buffer in layer.named_buffers():
            if name.endswith('running_var'):
                buffer.uniform_(0.5, 2)
            elif name.endswith('running_mean'):
                buffer.uniform_(-0.5, 0.5)
        check_layer(layer, formulas.lambda_layer,
                    [(batch, layer.in_channels, *size)], seed=seed, **case)

    sides = st.sampled_from([1, 3, 5, 9, 23])
    run_cases(
        check, cases, **common, heads=st.integers(1, 4),
        value_depth=st.integers(1, 4), query_depth=st.integers(1, 5),
        intra_depth=st.integers(1, 3),
        context=st.one_of(sides, st.tuples(sides, sides)),
        content_bias=st.booleans(), residual=st.booleans(),
        norm=st.sampled_from([dict(type='BN'), dict(type='SyncBN'),
                              dict(type='GN', num_groups=1)]), size=sizes())


def test_a_wrong_layer_is_found():
    """A layer whose scale is not that of its formula."""
    layer = randomise(SelfTransformer(4, scale=1.0))

    def formula(twin, x):
        twin.scale = 1.001
        return formulas.self_transformer(twin, x)

    with pytest.raises(AssertionError, match='output 0 differs'):
        check_layer(layer, formula, [(1, 4, 6, 6)], 'float32', 0, [True] * 16,
                    ('contiguous', ) * 3)
