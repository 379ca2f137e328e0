"""The FPT neck and LambdaResNet, put together at random, against float64."""

import copy

import torch
from helpers import layer_formulas as formulas
from helpers.fuzz_cases import (
    batches,
    compare,
    draw_tensors,
    exact_twin,
    layouts,
    leaf,
    least_norm,
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
modes = st.sampled_from(['float32', 'float32', 'float64'])


def check_network(network, formula, inputs, mode, learns):
    """Outputs and all gradients.

    Args:
        network: In float32; its parameters want gradients or do not.
        formula: ``formula(twin, maps)`` with everything in float64.
        inputs: In float64, by (layout, map).
        mode: A key of MODES.
        learns: Whether the inputs want gradients.
    """
    dtype, tolerance = MODES[mode]
    network.to(dtype)
    leaves = {
        f'input {i}': leaf(x, (dtype, layout, learns))
        for i, (layout, x) in enumerate(inputs)
    }
    maps = list(leaves.values())
    exact = copy.deepcopy(network).double().requires_grad_()
    exact_leaves = {name: exact_twin(x) for name, x in leaves.items()}
    leaves.update(network.named_parameters())
    exact_leaves.update(exact.named_parameters())
    got = network(maps)
    want = formula(exact, [exact_leaves[f'input {i}'] for i in range(len(maps))])
    assert len(got) == len(want)
    total = exact_total = 0
    for i, (a, b) in enumerate(zip(got, want)):
        assert a.dtype == dtype
        compare(f'output {i}', a, b, tolerance)
        upstream = draw_tensors(i, a.shape)[0].to(dtype)
        total = total + (a * upstream).sum()
        exact_total = exact_total + (b * upstream.double()).sum()
    if not total.requires_grad:
        assert not any(x.requires_grad for x in leaves.values())
        return
    total.backward()
    exact_total.backward()
    used = {n: x for n, x in exact_leaves.items() if x.grad is not None}
    floor = least_norm(used.values())
    for name, x in leaves.items():
        assert (x.grad is None) == (
            not x.requires_grad or name not in used), name
        if x.grad is not None:
            compare(name, x.grad, used[name].grad, tolerance, floor)


@st.composite
def pyramids(draw):
    """Sizes that do not grow from level to level."""
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
    """Config of a branch, or None."""
    return st.none() | st.fixed_dictionaries(dict(type=st.just(name)),
                                             optional=options)


@lengths('fpt')
def test_fpt(cases):

    def check(batch, sizes, pyramid, width, st_cfg, gt_cfg, rt_cfg, key_strides,
              fusion, norm, checkpoint, freeze, training, mode, learns, seed,
              layout):
        channels = 12  # a multiple of all numbers of parts
        options = {}
        if pyramid is None:
            in_channels = channels
            options.update(num_levels=len(sizes))
        else:
            in_channels = [3 + i for i in range(len(sizes))]
            options.update(num_outs=len(sizes))
        strides = key_strides
        if isinstance(strides, list):
            strides = strides[:len(sizes)]
        neck = FPT(
            in_channels,
            channels,
            pyramid=pyramid and dict(type=pyramid),
            self_transformer=st_cfg,
            grounding_transformer=gt_cfg,
            rendering_transformer=rt_cfg,
            embed_channels=width,
            key_strides=strides,
            fusion=fusion,
            fusion_norm_cfg=norm,
            checkpoint_branches=checkpoint,
            freeze_pyramid=freeze and pyramid is not None,
            **options)
        randomise(neck, seed).train(training)
        shapes = [(batch, c, *size) for c, size in zip(
            [channels] * len(sizes) if pyramid is None else in_channels, sizes)]
        inputs = [(layout, x) for x in draw_tensors(seed, *shapes)]
        check_network(neck, formulas.fpt, inputs, mode, learns)

    mixtures = st.sampled_from([1, 2, 3, 4])
    scales = st.sampled_from([None, 1.0])
    run_cases(
        check,
        cases,
        batch=batches,
        sizes=pyramids(),
        pyramid=st.sampled_from([None, 'BottomUpPyramid', 'mmdet.FPN']),
        width=st.sampled_from([None, 12, 24]),
        st_cfg=branch('SelfTransformer', num_mixtures=mixtures, scale=scales),
        gt_cfg=st.one_of(
            branch('GroundingTransformer', num_mixtures=mixtures, scale=scales),
            branch('LocalGroundingTransformer', num_mixtures=mixtures,
                   window=st.sampled_from([1, 3, 5]),
                   pad=st.sampled_from(['zero', 'mask']))),
        rt_cfg=branch('RenderingTransformer'),
        key_strides=st.one_of(
            st.none(), st.integers(1, 8),
            st.lists(st.integers(1, 8), min_size=4, max_size=4)),
        fusion=st.sampled_from(['residual', 'concat']),
        norm=st.sampled_from([None, None, dict(type='GN', num_groups=1)]),
        checkpoint=st.booleans(),
        freeze=st.booleans(),
        training=st.booleans(),
        mode=modes,
        learns=st.booleans(),
        seed=seeds,
        layout=layouts)


def with_formulas(backbone, images):
    """The backbone's pass with the lambdas of functional/reference.py."""
    for module in backbone.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = False  # the backward pass would take the others
    fast = lambda_layer.position_lambda, lambda_layer.content_lambda
    lambda_layer.position_lambda = reference.position_lambda
    lambda_layer.content_lambda = reference.content_lambda
    try:
        return backbone(images[0])
    finally:
        lambda_layer.position_lambda, lambda_layer.content_lambda = fast


class OneImage(torch.nn.Module):
    """A backbone that takes the list of its one input."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return self.backbone(images[0])


@lengths('lambda_resnet')
def test_lambda_resnet(cases):

    def check(depth, stages, places, layer, se, dilations, frozen, with_cp,
              batch, channels, size, mode, learns, seed, layout):
        backbone = LambdaResNet(
            depth,
            in_channels=channels,
            num_stages=stages,
            out_indices=tuple(range(stages))[-2:],
            dilations=dilations,
            strides=tuple(1 if d > 1 else 2 for d in dilations),
            lambda_blocks=[p for p in places if p[0] < stages],
            lambda_layer=layer,
            se=se,
            frozen_stages=min(frozen, stages),
            with_cp=with_cp,
            zero_init_residual=False)
        frozen_ones = {n for n, p in backbone.named_parameters()
                       if not p.requires_grad}
        backbone.train()
        assert frozen_ones == {n for n, p in backbone.named_parameters()
                               if not p.requires_grad}
        inputs = [(layout, *draw_tensors(seed, (batch, channels, *size)))]
        check_network(
            OneImage(backbone), lambda twin, x: with_formulas(
                twin.backbone, x), inputs, mode, learns)

    run_cases(
        check,
        cases,
        depth=st.sampled_from(['26t', '26rpt']),
        stages=st.sampled_from([1, 2, 2, 3]),
        places=st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1,
            max_size=3, unique=True),
        layer=st.fixed_dictionaries(
            dict(context_size=st.sampled_from([3, 7, (5, 9)])),
            optional=dict(
                intra_depth=st.integers(1, 2),
                num_heads=st.sampled_from([1, 8]),
                content_bias=st.booleans())),
        se=st.booleans(),
        dilations=st.sampled_from([(1, 1, 1, 1), (1, 2, 2, 4)]),
        frozen=st.integers(-1, 3),
        with_cp=st.booleans(),
        batch=st.sampled_from([1, 1, 2, 0]),
        channels=st.sampled_from([1, 3]),
        size=st.one_of(
            st.tuples(st.integers(1, 33), st.integers(1, 33)),
            st.tuples(st.integers(1, 130), st.integers(1, 9)),
            st.tuples(st.integers(1, 9), st.integers(1, 130))),
        mode=modes,
        learns=st.booleans(),
        seed=seeds,
        layout=layouts)
