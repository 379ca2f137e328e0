"""Load checkpoints of plain pyramids and other presets into FPT."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.base import backbone_maps
from helpers.oracles import randomise
from mmengine.model import Sequential
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from fpt_plugin import FPT

CHANNELS = [8, 16, 24, 32]
ARGS = dict(in_channels=CHANNELS, out_channels=16, num_outs=5)
# FPT at the end of a list of necks.
LAST = dict(type='FPT', pyramid=None, in_channels=16, out_channels=16, num_levels=4)
NECK_LISTS = [
    [dict(type='FPN', **ARGS)],
    [dict(type='FPN', **ARGS), dict(type='BFP', in_channels=16, num_levels=5)],
]


def neck(neck_type: str, **kwargs) -> torch.nn.Module:
    return MODELS.build(dict(type=f'mmdet.{neck_type}', **{**ARGS, **kwargs}))


class Detector(torch.nn.Module):
    """Gives the neck's keys their prefix in a checkpoint."""

    def __init__(self, neck):
        super().__init__()
        self.neck = neck


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[k], right[k]) for k in left)


def load(loader, model, state_dict, capsys, part):
    """Load a plain checkpoint; only keys that ``part`` does not have may be missing."""
    keys = list(state_dict)
    if loader == 'torch':
        result = model.load_state_dict(state_dict, strict=False)
        assert not result.unexpected_keys
        assert not any(k.startswith(part) for k in result.missing_keys)
    else:
        _load_checkpoint_to_model(model, dict(state_dict=state_dict))
        assert 'unexpected' not in capsys.readouterr().out
    assert list(state_dict) == keys, 'the checkpoint itself was changed'


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
def test_plain_checkpoint_of_a_detector(loader, messages, capsys):
    plain, ours = Detector(neck('FPN')), Detector(FPT(**ARGS))
    load(loader, ours, plain.state_dict(), capsys, 'neck.pyramid.')
    assert not messages
    assert same(ours.neck.pyramid, plain.neck)


def test_own_checkpoint_loads_strictly(messages):
    ours, other = Detector(FPT(**ARGS)), Detector(FPT(**ARGS))
    other.load_state_dict(ours.state_dict(), strict=True)
    assert same(ours, other) and not messages


BN = dict(norm_cfg=dict(type='BN'))


@pytest.mark.parametrize('wrapped, stored, options, words', [
    ('FPN', 'PAFPN', {}, "downsample_convs.*type='PAFPN'"),
    ('PAFPN', 'FPN', {}, "type='FPN'"),
    ('BottomUpPyramid', 'FPN', {}, "type='FPN'"),
    ('FPN', 'HRFPN', {}, "type='HRFPN'"),
    ('FPN', 'NASFPN', dict(BN, stack_times=1), "type='NASFPN'"),
    ('FPN', 'ChannelMapper', {}, "type='ChannelMapper'"),
    ('FPN', 'FPN', BN, 'other arguments'),
])
def test_the_likely_neck_is_named(wrapped, stored, options, words, messages):
    state_dict = Detector(neck(stored, **options)).state_dict()
    Detector(FPT(**ARGS, pyramid=dict(type=wrapped))).load_state_dict(
        state_dict, strict=False)
    text, = messages
    assert re.search(words, text)


def test_a_neck_without_num_outs_is_named(messages):
    stored = MODELS.build(
        dict(type='mmdet.YOLOXPAFPN', in_channels=CHANNELS, out_channels=16))
    FPT(**ARGS).load_state_dict(stored.state_dict(), strict=False)
    assert "type='YOLOXPAFPN'" in messages[0]


def test_strict_loading_of_another_neck_fails():
    with pytest.raises(RuntimeError, match='downsample_convs'):
        FPT(**ARGS).load_state_dict(neck('PAFPN').state_dict(), strict=True)


def test_checkpoint_without_a_neck_is_silent(messages):
    Detector(FPT(**ARGS)).load_state_dict({}, strict=False)
    assert not messages


@pytest.mark.parametrize('trained', ['light', 'full', 'paper'])
@pytest.mark.parametrize('neck_type, channels', [
    ('FPT', 64), ('FPT', 256), ('SelfTransformerNeck', 256),
    ('GroundingTransformerNeck', 256), ('RenderingTransformerNeck', 256)])
def test_branches_of_another_preset_are_refused(trained, neck_type, channels):
    """With strict=False torch would drop them silently."""
    args = dict(ARGS, out_channels=channels, pyramid=dict(type='FPN'),
                type=neck_type)
    state_dict = Detector(MODELS.build(dict(args, preset=trained))).state_dict()
    with pytest.raises(RuntimeError, match=f"write preset='{trained}'"):
        Detector(MODELS.build(args)).load_state_dict(state_dict, strict=False)
    Detector(MODELS.build(dict(args, preset=trained))).load_state_dict(state_dict)


def test_commands_can_report_it_in_one_line():
    """They load through mmengine and catch a ValueError."""
    state_dict = Detector(FPT(**ARGS, preset='full')).state_dict()
    with pytest.raises(ValueError, match=r"preset='full'.*0\.1\.0"):
        _load_checkpoint_to_model(Detector(FPT(**ARGS)),
                                  dict(state_dict=state_dict))


def test_other_arguments_of_the_same_preset():
    state_dict = FPT(**ARGS).state_dict()
    with pytest.raises(ValueError, match='that it was trained with'):
        FPT(**ARGS, self_transformer=None).load_state_dict(state_dict)


def test_a_left_out_branch_is_refused():
    with pytest.raises(RuntimeError, match='have no place in it'):
        FPT(**ARGS, self_transformer=None).load_state_dict(
            FPT(**ARGS, preset='full').state_dict(), strict=False)


def test_a_neck_may_have_more_branches_than_the_checkpoint():
    args = dict(ARGS, fusion='concat', self_transformer=None)
    trained = FPT(**args, grounding_transformer=None, preset='full')
    state_dict = {k: v for k, v in trained.state_dict().items()
                  if not k.startswith('fusions.')}
    result = FPT(**args, preset='full').load_state_dict(
        state_dict, strict=False)
    assert result.missing_keys and not result.unexpected_keys


def test_nested_fpt(messages):
    """An FPT around a trained FPT starts as the trained one."""
    inner = randomise(FPT(**ARGS)).eval()
    outer = FPT(**ARGS, num_levels=4, pyramid=dict(type='FPT')).eval()
    outer.load_state_dict(inner.state_dict(), strict=False)
    assert outer.pyramid.num_levels == 4
    assert not messages
    inputs = backbone_maps(CHANNELS, 32, 32, batch=1)
    for a, b in zip(outer(inputs), inner(inputs)):
        assert torch.equal(a, b)


NESTS = {
    'FPT': dict(type='FPT'),
    'a neck of one branch': dict(type='SelfTransformerNeck'),
    'FPT around FPT': dict(type='FPT', num_levels=4, pyramid=dict(type='FPT')),
    'a list': [dict(type='FPN', **ARGS), LAST],
}


@pytest.mark.parametrize('pyramid', NESTS)
def test_plain_checkpoints_under_nested_fpts(pyramid, messages):
    init_default_scope('mmdet')
    args = ARGS if isinstance(NESTS[pyramid], dict) else dict(
        in_channels=CHANNELS, out_channels=16)
    plain = Detector(neck('FPN'))
    ours = Detector(FPT(**args, num_levels=4, pyramid=NESTS[pyramid]))
    result = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys and not messages
    fpn = next(m for m in ours.modules() if isinstance(m, type(plain.neck)))
    assert same(fpn, plain.neck)
    # Keys that do not fit still give one warning.
    other = Detector(neck('PAFPN'))
    result = ours.load_state_dict(other.state_dict(), strict=False)
    assert result.unexpected_keys
    assert 'downsample_convs' in messages[0] and len(messages) == 1


@pytest.mark.parametrize('necks', NECK_LISTS)
@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
@pytest.mark.parametrize('as_list', [True, False])
def test_fpt_at_the_end_of_a_list(necks, loader, as_list, messages, capsys):
    init_default_scope('mmdet')
    plain = Detector(MODELS.build(necks if as_list else necks[0]))
    ours = Detector(MODELS.build([*necks, LAST]))
    load(loader, ours, plain.state_dict(), capsys, 'neck.0.')
    assert not messages
    assert same(ours.neck[0], plain.neck[0] if as_list else plain.neck)
    # The keys of its own checkpoint are not renamed.
    again = Detector(MODELS.build([*necks, LAST]))
    again.load_state_dict(ours.state_dict(), strict=True)
    assert same(again, ours)


@pytest.mark.parametrize('necks', NECK_LISTS)
def test_a_list_loads_the_checkpoint_of_an_fpt_around_its_necks(necks):
    init_default_scope('mmdet')
    wrapped = dict(type='FPT', in_channels=CHANNELS, out_channels=16,
                   num_levels=4, pyramid=necks if len(necks) > 1 else necks[0])
    ours = Detector(randomise(MODELS.build(wrapped)))
    other = Detector(MODELS.build([*necks, LAST]))
    other.load_state_dict(ours.state_dict(), strict=True)
    inputs = backbone_maps(CHANNELS, 32, 32, batch=1)
    for a, b in zip(ours.neck.eval()(inputs), other.neck.eval()(inputs)):
        assert torch.equal(a, b)


def test_other_lists_keep_their_keys():
    """If the modules before FPT are no necks."""
    for necks in (Sequential(torch.nn.Linear(1, 1)),
                  Sequential(FPT(16, 16, pyramid=None, num_levels=2))):
        result = necks.load_state_dict({'weight': torch.ones(1)}, strict=False)
        assert result.unexpected_keys == ['weight']


def test_pretrained_init_cfg_reaches_the_pyramid(tmp_path):
    plain = Detector(neck('FPN'))
    torch.save(plain.state_dict(), tmp_path / 'detector.pth')
    ours = FPT(
        **ARGS,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(tmp_path / 'detector.pth'),
            prefix='neck.'))
    ours.init_weights()
    assert same(ours.pyramid, plain.neck)
