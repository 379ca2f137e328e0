"""Random arguments: a network is built and runs, or the arguments are rejected.

Only ValueError and TypeError may be raised. Networks are built on the meta device
first, where even the widest need no memory; all except the largest then train for a
step.
"""

import copy
import math

import pytest
import torch
from helpers.base import backbone_maps
from helpers.fuzz_cases import lengths, run_cases
from hypothesis import strategies as st

from fpt_plugin import FPT, LambdaResNet

REJECTIONS = (ValueError, TypeError)


class Unknown:
    """An object that no argument accepts."""

    def __repr__(self):
        return 'Unknown()'


ODD = [
    None, True, False, 0, -1, -7, 1, 2, 3, 5, 64, 10**6, 2**40, 10**30, 0.5,
    -0.0, math.nan, math.inf, '', '16', 'FPN', 'residual', 'all', 'pytorch',
    b'x', [], (), {}, [0], [1], [-1], [2, 2], [1, 2, 3, 4], (1, 2, 4, 8), [None],
    ['a', 'b'], [1.5] * 4, [[1, 2], [3, 4]], {1}, range(3), int, Unknown(),
    Unknown, torch.zeros(2), dict(type=None), dict(type=''), dict(type='Nope'),
    dict(type='mmdet.Nope'), dict(type=3), dict(type='FPN'), dict(typ='BN'),
    dict(type='BN'), dict(type='BN', nope=1), dict(type='BN', momentum='x'),
    dict(type='GN'), dict(type='GN', num_groups=0),
    dict(type='GN', num_groups=5), dict(type='GN', num_groups='2'),
    dict(type='ReLU'), dict(type='Conv2d'), dict(type='SelfTransformer'),
    dict(type='LambdaLayer'), [dict(type='FPN')], dict(type=int),
]
odd = st.sampled_from(ODD)


def mutated(valid: dict):
    """Draw up to four arguments, of which some have an odd value.

    Args:
        valid: The strategy for the valid values of each argument.
    """

    @st.composite
    def draw_arguments(draw):
        names = draw(
            st.lists(st.sampled_from(sorted(valid)), max_size=4, unique=True))
        wrong = draw(st.sampled_from([0, 0, 1, 1, 2, 3]))
        return {
            name: draw(odd if i < wrong else valid[name])
            for i, name in enumerate(names)
        }

    return draw_arguments()


def dicts(type_name, **options):
    """Draw the config of a layer, whose arguments may be odd."""
    return st.fixed_dictionaries(
        dict(type=st.just(type_name)),
        optional={
            name: st.one_of(values, values, odd)
            for name, values in options.items()
        })


class Outcomes:
    """Numbers of cases that were rejected, and that ran."""

    def __init__(self):
        self.rejected = self.ran = 0

    def check_both(self):
        """Require some cases of both kinds."""
        assert self.rejected >= 0.15 * (self.rejected + self.ran)
        assert self.ran >= 0.15 * (self.rejected + self.ran)


def build_and_run(outcomes, cls, arguments, make_inputs):
    """Build ``cls`` and train it for a step, or count its rejection."""
    try:
        with torch.device('meta'):
            network = cls(**copy.deepcopy(arguments))
        if sum(p.numel() for p in network.parameters()) > 1e7:
            outcomes.ran += 1
            return
        outs = cls(**copy.deepcopy(arguments)).train()(make_inputs())
    except REJECTIONS as error:
        assert str(error)
        outcomes.rejected += 1
        return
    outcomes.ran += 1
    assert all(out.isfinite().all() for out in outs)
    total = sum(out.sum() for out in outs)
    if total.requires_grad:
        total.backward()


def run_arguments(cases, cls, defaults, valid, longest, make_inputs):
    """Run random arguments, with inputs of up to ``longest`` pixels a side."""
    outcomes = Outcomes()

    def check(arguments, size):
        arguments = {**defaults, **arguments}
        build_and_run(outcomes, cls, arguments,
                      lambda: make_inputs(arguments, size))

    sides = st.integers(1, longest)
    run_cases(check, cases, arguments=mutated(valid), size=st.tuples(sides, sides))
    outcomes.check_both()


mixtures = st.integers(1, 4)
strides = st.integers(1, 8)
FPT_ARGUMENTS = dict(
    in_channels=st.sampled_from([[4, 6, 8], (4, 6, 8)]),
    out_channels=st.sampled_from([4, 8, 12]),
    num_outs=st.integers(3, 5),
    pyramid=st.sampled_from([
        dict(type='BottomUpPyramid'), dict(type='mmdet.PAFPN'),
        dict(type='mmdet.FPN', add_extra_convs='on_output'),
        dict(type='BottomUpPyramid', start_level=1),
        [dict(type='BottomUpPyramid', in_channels=[4, 6, 8], out_channels=8)]
    ]),
    self_transformer=st.none() | dicts(
        'SelfTransformer', num_mixtures=mixtures, key_stride=strides,
        embed_channels=st.just(12), scale=st.sampled_from([None, 1])),
    grounding_transformer=st.none() | dicts(
        'GroundingTransformer', num_mixtures=mixtures, key_stride=strides)
    | dicts('LocalGroundingTransformer', window=st.sampled_from([1, 3, 5]),
            pad=st.sampled_from(['zero', 'mask']), num_mixtures=mixtures),
    rendering_transformer=st.none() | dicts(
        'RenderingTransformer', embed_channels=st.integers(1, 12)),
    num_levels=st.integers(1, 3),
    embed_channels=st.sampled_from([None, 12, 24]),
    key_strides=st.none() | strides | st.lists(strides, min_size=3, max_size=3),
    fusion=st.sampled_from(['residual', 'concat']),
    fusion_norm_cfg=st.sampled_from(
        [None, dict(type='BN'), dict(type='GN', num_groups=2)]),
    drop_block=st.sampled_from(
        [None, dict(type='mmdet.DropBlock', drop_prob=0.1, block_size=3)]),
    checkpoint_branches=st.booleans(),
    freeze_pyramid=st.booleans(),
    norm_cfg=st.sampled_from([None, dict(type='BN')]),
    act_cfg=st.sampled_from([None, dict(type='ReLU')]),
    conv_cfg=st.sampled_from([None, dict(type='Conv2d')]),
    init_cfg=st.none(),
    start_level=st.integers(0, 2),
    nope=odd,
)


@lengths('arguments of fpt')
def test_fpt(cases):
    defaults = dict(in_channels=[4, 6, 8], out_channels=8, num_outs=3,
                    pyramid=dict(type='BottomUpPyramid'))
    run_arguments(cases, FPT, defaults, FPT_ARGUMENTS, 16,
                  lambda arguments, size: backbone_maps([4, 6, 8], *size))


sides = st.sampled_from([1, 3, 5, (3, 5)])
LAMBDA_RESNET_ARGUMENTS = dict(
    depth=st.sampled_from(['26t', '26rpt', '50ts', 'd-li14-50', 50]),
    in_channels=st.sampled_from([1, 3, 4]),
    num_stages=st.integers(1, 4),
    strides=st.sampled_from([(1, 2, 2, 2), [1, 2, 1, 1], (2, 2, 2, 2)]),
    dilations=st.sampled_from([(1, 1, 1, 1), (1, 1, 2, 4)]),
    out_indices=st.sampled_from([(0, 1, 2, 3), [3], (0, ), [1, 2]]),
    style=st.just('pytorch'),
    frozen_stages=st.integers(-1, 4),
    lambda_blocks=st.sampled_from(
        ['hybrid', 'all', [], [(0, 0)], [[1, 1], [2, 0]]]),
    lambda_layer=st.none() | st.fixed_dictionaries({}, optional=dict(
        context_size=st.one_of(sides, odd),
        num_heads=st.one_of(st.sampled_from([1, 2, 4, 8]), odd),
        query_depth=st.one_of(st.integers(1, 32), odd),
        intra_depth=st.one_of(st.integers(1, 4), odd),
        content_bias=st.booleans(),
        residual=st.one_of(st.just(False), odd),
        norm_cfg=st.one_of(st.just(dict(type='BN')), odd),
        out_channels=odd,
        nope=odd)),
    se=st.booleans(),
    contract_dilation=st.booleans(),
    conv_cfg=st.sampled_from([None, dict(type='Conv2d')]),
    norm_cfg=st.sampled_from(
        [dict(type='BN'), dict(type='GN', num_groups=4),
         dict(type='SyncBN', requires_grad=False)]),
    norm_eval=st.booleans(),
    act_cfg=st.sampled_from([None, dict(type='SiLU'), dict(type='GELU')]),
    with_cp=st.booleans(),
    zero_init_residual=st.booleans(),
    init_cfg=st.none(),
    nope=odd,
)


@lengths('arguments of lambda_resnet')
def test_lambda_resnet(cases):
    run_arguments(
        cases, LambdaResNet, dict(depth='26t', in_channels=3),
        LAMBDA_RESNET_ARGUMENTS, 64,
        lambda arguments, size: torch.randn(2, arguments['in_channels'], *size))


def test_other_errors_are_not_counted_as_rejections():
    with pytest.raises(KeyError):
        build_and_run(Outcomes(), lambda **kwargs: kwargs['absent'], {}, list)
