"""The FPT neck and LambdaResNet with random arguments, against float64."""

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
)
from helpers.oracles import randomise
from hypothesis import strategies as st

from fpt_plugin import FPT, LambdaResNet
from fpt_plugin.functional import reference
from fpt_plugin.layers import lambda_layer

MODES = {'float32': (torch.float32, 1e-4), 'float64': (torch.float64, 1e-9)}
common = dict(
    mode=st.sampled_from(['float32', 'float32', 'float64']), learns=st.booleans(),
    seed=seeds, layout=layouts)


def check_network(network, formula, inputs, mode, learns, layout):
    """Compare outputs and all gradients with the formula.

    Args:
        network: A float32 network; some parameters may be frozen.
        formula: ``formula(twin, maps)`` in float64.
        inputs: The maps of a neck, or the only image of a backbone, in float64.
        mode: A key of MODES.
        learns: Whether the inputs need gradients.
        layout: The layout of the inputs.
    """
    dtype, tolerance = MODES[mode]
    network.to(dtype)
    leaves = {f'input {i}': leaf(x, (dtype, layout, learns))
              for i, x in enumerate(inputs)}
    exact_leaves = {name: exact_twin(x) for name, x in leaves.items()}
    exact = copy.deepcopy(network).double().requires_grad_()
    maps, exact_maps = list(leaves.values()), list(exact_leaves.values())
    got = network(maps if isinstance(network, FPT) else maps[0])
    assert all(x.dtype == dtype for x in got)
    leaves.update(network.named_parameters())
    exact_leaves.update(exact.named_parameters())
    assert_agree(got, formula(exact, exact_maps), leaves, exact_leaves, tolerance)


@st.composite
def pyramids(draw):
    """Draw sizes of levels; each is at most as large as the one before."""
    longest = draw(st.sampled_from([(24, 24), (130, 2), (2, 130)]))
    size = tuple(draw(st.integers(1, side)) for side in longest)
    sizes = [size]
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(['half', 'half', 'same', 'any']))
        size = {
            'half': tuple(-(-side // 2) for side in size),
            'same': size,
            'any': tuple(draw(st.integers(1, side)) for side in size)
        }[kind]
        sizes.append(size)
    return sizes


def branch(name, **options):
    """Draw the config of a branch, or None."""
    return st.none() | st.fixed_dictionaries(dict(type=st.just(name)),
                                             optional=options)


@lengths('fpt')
def test_fpt(cases):

    def check(batch, sizes, pyramid, key_strides, freeze, training, seed,
              **options):
        channels = 12  # a multiple of every num_mixtures
        case = {key: options.pop(key) for key in ('mode', 'learns', 'layout')}
        if pyramid is None:
            in_channels = channels
            options.update(num_levels=len(sizes))
        else:
            in_channels = [3 + i for i in range(len(sizes))]
            options.update(num_outs=len(sizes), pyramid=dict(type=pyramid))
        if isinstance(key_strides, list):
            key_strides = key_strides[:len(sizes)]
        neck = FPT(
            in_channels, channels, key_strides=key_strides,
            freeze_pyramid=freeze and pyramid is not None,
            **{'pyramid': None, **options})
        randomise(neck, seed).train(training)
        shapes = [(batch, c, *size) for c, size in zip(
            [channels] * len(sizes) if pyramid is None else in_channels, sizes)]
        check_network(neck, formulas.fpt, draw_tensors(seed, *shapes), **case)

    mixture = dict(num_mixtures=st.sampled_from([1, 2, 3, 4]),
                   scale=st.sampled_from([None, 1.0]))
    run_cases(
        check, cases, **common, batch=batches, sizes=pyramids(),
        pyramid=st.sampled_from([None, 'BottomUpPyramid', 'mmdet.FPN']),
        embed_channels=st.sampled_from([None, 12, 24]),
        self_transformer=branch('SelfTransformer', **mixture),
        grounding_transformer=st.one_of(
            branch('GroundingTransformer', **mixture),
            branch('LocalGroundingTransformer', window=st.sampled_from([1, 3, 5]),
                   pad=st.sampled_from(['zero', 'mask']),
                   num_mixtures=mixture['num_mixtures'])),
        rendering_transformer=branch('RenderingTransformer'),
        key_strides=st.one_of(
            st.none(), st.integers(1, 8),
            st.lists(st.integers(1, 8), min_size=4, max_size=4)),
        fusion=st.sampled_from(['residual', 'concat']),
        fusion_norm_cfg=st.sampled_from(
            [None, None, dict(type='GN', num_groups=1)]),
        checkpoint_branches=st.booleans(), freeze=st.booleans(),
        training=st.booleans())


def with_formulas(backbone, images):
    """Run the backbone with the lambdas of functional/reference.py."""
    for module in backbone.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = False  # the backward pass would use the fast functions
    with pytest.MonkeyPatch.context() as patch:
        for name in ('position_lambda', 'content_lambda'):
            patch.setattr(lambda_layer, name, getattr(reference, name))
        return backbone(*images)


@lengths('lambda_resnet')
def test_lambda_resnet(cases):

    def check(num_stages, lambda_blocks, dilations, frozen_stages, batch,
              in_channels, size, seed, **options):
        case = {key: options.pop(key) for key in ('mode', 'learns', 'layout')}
        backbone = LambdaResNet(
            in_channels=in_channels,
            num_stages=num_stages,
            out_indices=tuple(range(num_stages))[-2:],
            dilations=dilations,
            strides=tuple(1 if d > 1 else 2 for d in dilations),
            lambda_blocks=[b for b in lambda_blocks if b[0] < num_stages],
            frozen_stages=min(frozen_stages, num_stages),
            zero_init_residual=False, **options)
        frozen = [p for p in backbone.parameters() if not p.requires_grad]
        backbone.train()
        still = [p for p in backbone.parameters() if not p.requires_grad]
        assert list(map(id, frozen)) == list(map(id, still))
        check_network(backbone, with_formulas,
                      draw_tensors(seed, (batch, in_channels, *size)), **case)

    run_cases(
        check, cases, **common, depth=st.sampled_from(['26t', '26rpt']),
        num_stages=st.sampled_from([1, 2, 2, 3]),
        lambda_blocks=st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1,
            max_size=3, unique=True),
        lambda_layer=st.fixed_dictionaries(
            dict(context_size=st.sampled_from([3, 7, (5, 9)])),
            optional=dict(
                intra_depth=st.integers(1, 2),
                num_heads=st.sampled_from([1, 8]),
                content_bias=st.booleans())),
        se=st.booleans(),
        dilations=st.sampled_from([(1, 1, 1, 1), (1, 2, 2, 4)]),
        frozen_stages=st.integers(-1, 3), with_cp=st.booleans(),
        batch=st.sampled_from([1, 1, 2, 0]), in_channels=st.sampled_from([1, 3]),
        size=st.one_of(*(
            st.tuples(st.integers(1, height), st.integers(1, width))
            for height, width in ((33, 33), (130, 9), (9, 130)))))
