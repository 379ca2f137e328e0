"""What others rely on is still there; public_api.py says what that is."""

from __future__ import annotations

import argparse
from types import ModuleType

import pytest
from helpers import public_api
from mmengine.registry import MODELS

import fpt_plugin
from fpt_plugin.commands import publish_model as publish

HOW = 'python tests/public_api.py records what was added'


@pytest.fixture(scope='module')
def lines():
    return public_api.current()


@pytest.fixture(scope='module')
def old():
    return public_api.recorded()


def broken(old, new):
    return public_api.compare(old, new)[0]


# ----------------------------------------------------------------- the record


def test_nothing_that_others_rely_on_is_gone(lines, old):
    found = broken(old, lines)
    assert not found, 'put it back, or see tests/public_api.py:\n' + '\n'.join(
        found)


def test_what_was_added_is_recorded(lines, old):
    added = public_api.compare(old, lines)[1]
    assert not added, f'{HOW}:\n' + '\n'.join(added)


def test_the_record_is_as_the_command_writes_it(old):
    assert old == sorted(set(old))


@pytest.mark.parametrize('line', [
    'name fpt_plugin.FPT',
    'name fpt_plugin.functional.mixture_attention',
    'name fpt_plugin.SelfTransformer.attention_at',
    "argument fpt_plugin.FPT: [10] fusion='residual'",
    'argument fpt_plugin.FPT: [**] pyramid_args',
    "argument fpt_plugin.functional.mixture_attention: [*] similarity='dot'",
    'argument fpt_plugin.LambdaLayer.forward: [0] x required',
    'argument fpt_plugin.commands.graft.graft: [1] neck=None',
    'registered model LambdaResNet',
    'registered hook TrainGraftOnlyHook',
    'command convert_weights.py timm-lambda',
    'flag convert_weights.py timm-lambda: --arch required',
    'flag publish_model.py: [1] out required',
    "flag graft.py: --neck takes 'SelfTransformerNeck'",
    'file configs/fpt/faster-rcnn_r50_fpt_1x_coco.py',
    'file tools/dist_train.sh',
    'variable FPT_ATTENTION',
])
def test_every_kind_of_line_is_there(old, line):
    assert line in old


def test_tensors_of_every_module_and_branch(old):
    kinds = {line.partition(' ')[2].partition(':')[0] for line in old
             if line.startswith('tensor ')}
    assert kinds == set(public_api.MODULES)
    levels = [line for line in old if line.startswith('tensor FPT over FPN: ')]
    for part in ('pyramid.lateral_convs.3.', 'self_transformers.3_3.',
                 'grounding_transformers.0_3.', 'rendering_transformers.3_0.',
                 'fusions.3.'):
        assert any(f': {part}' in line for line in levels), part
    assert 'tensor LambdaResNet 26t: layer3.{1}.conv2.embedding ' \
        '(16, 1, 9, 9)' in old


def test_it_covers_all_that_the_packages_export(old):
    for package in public_api.PACKAGES:
        module = public_api.import_module(package)
        for name in module.__all__:
            assert f'name {package}.{name}' in old
    for name, found in MODELS.module_dict.items():
        if found.__module__.startswith('fpt_plugin'):
            assert f'registered model {name}' in old


# ---------------------------------------------------------- what breaks others


@pytest.mark.parametrize('start', [
    'name ', 'argument ', 'registered ', 'command ', 'flag ', 'file ',
    'tensor ', 'variable '])
def test_each_line_is_missed(old, start):
    """Of every kind the first line and the last one."""
    kind = [line for line in old if line.startswith(start)]
    for line in (kind[0], kind[-1]):
        assert broken(old, [x for x in old if x != line]) == [line]


def with_argument(function, whole='fpt_plugin.f'):
    return [f'name {whole}', *public_api.arguments(whole, function)]


@pytest.mark.parametrize('changed', [
    pytest.param(lambda x, b=2: 0, id='renamed'),
    pytest.param(lambda x: 0, id='removed'),
    pytest.param(lambda x, a=3: 0, id='another default'),
    pytest.param(lambda x, a: 0, id='no default'),
    pytest.param(lambda x, *, a=2: 0, id='by name alone'),
    pytest.param(lambda a=2, x=0: 0, id='another order'),
    pytest.param(lambda x, new, a=2: 0, id='a required one between'),
    pytest.param(lambda x, a=2, *, new: 0, id='a required one by name'),
])
def test_changed_arguments_break(changed):
    old = with_argument(lambda x, a=2: 0)
    assert broken(old, old) == []
    assert broken(old, with_argument(changed))


def test_an_optional_argument_is_an_addition():
    old = with_argument(lambda x, a=2: 0)
    new = with_argument(lambda x, a=2, b=None, **others: 0)
    assert public_api.compare(old, new) == (
        [], ['argument fpt_plugin.f: [2] b=None',
             'argument fpt_plugin.f: [**] others'])
    # and a new function may want what it likes
    assert broken(old, old + with_argument(lambda y: 0, 'fpt_plugin.g')) == []


def a_package(**members):
    package = ModuleType('fpt_plugin.necks')
    vars(package).update(members, __all__=list(members))
    return package


def test_a_class_of_another_form_breaks():

    class FPT(fpt_plugin.FPT):
        __module__ = 'fpt_plugin.necks.fpt'

        def __init__(self, in_channels, out_channels):
            """Two arguments are left."""

        __init__.__module__ = 'fpt_plugin.necks.fpt'

    old = list(public_api.members('fpt_plugin.FPT', fpt_plugin.FPT))
    new = list(public_api.members('fpt_plugin.FPT', FPT))
    assert "argument fpt_plugin.FPT: [3] pyramid={'type': 'FPN'}" in broken(
        old, new)
    FPT.branch_inputs = None
    new = list(public_api.members('fpt_plugin.FPT', FPT))
    assert 'name fpt_plugin.FPT.branch_inputs' in broken(old, new)


def test_a_package_that_lost_a_name_breaks():
    necks = fpt_plugin.necks
    members = {name: getattr(necks, name) for name in necks.__all__}
    old = list(public_api.names([a_package(**members)]))
    members.pop('UFP')
    new = list(public_api.names([a_package(**members)]))
    assert broken(old, new) == ['name fpt_plugin.necks.UFP']


@pytest.mark.parametrize('change', [
    dict(self_transformer=None), dict(embed_channels=64), dict(fusion='concat'),
    dict(grounding_transformer=dict(type='GroundingTransformer',
                                    num_mixtures=2)),
    dict(fusion_norm_cfg=dict(type='BN')), dict(num_levels=3)])
def test_another_state_dict_breaks(old, change):
    """A tensor that is gone, of another shape, or that checkpoints lack."""
    name = 'FPT over FPN'
    mine = [line for line in old if line.startswith(f'tensor {name}: ')]
    assert broken(mine, public_api.tensors({name: public_api.FPN})) == []
    assert broken(mine, public_api.tensors({name: {**public_api.FPN, **change}}))


def test_another_module_is_an_addition(old):
    new = list(public_api.tensors({'another': public_api.FPN}))
    found, added = public_api.compare(old, [*old, *new])
    assert found == [] and added == new


def flags(parser):
    return list(public_api.flags('publish_model.py', parser))


def test_flags_of_a_changed_tool_break():
    old = flags(publish.parser())
    more = publish.parser()
    more.add_argument('--quiet', action='store_true')
    assert public_api.compare(old, flags(more)) == (
        [], ['flag publish_model.py: --quiet nargs=0=False'])
    more.add_argument('--key', required=True)
    assert broken(old, flags(more)) == ['flag publish_model.py: --key required']
    less = argparse.ArgumentParser()
    less.add_argument('out')
    less.add_argument('source')
    assert broken(old, flags(less))[:3] == [
        'flag publish_model.py: [0] source required',
        'flag publish_model.py: [1] out required',
        'flag publish_model.py: --force nargs=0=False']


# ------------------------------------------------------------------ recording


@pytest.fixture
def record(lines, tmp_path, monkeypatch):
    path = tmp_path / 'public_api.txt'
    path.write_text('\n'.join(lines) + '\n')
    monkeypatch.setattr(public_api, 'RECORD', path)
    monkeypatch.setattr(public_api, 'current', lambda: lines)
    return path


def test_additions_are_recorded(record, lines):
    record.write_text('\n'.join(x for x in lines if 'UFP' not in x))
    public_api.main([])
    assert record.read_text().splitlines() == sorted(lines)


def test_what_is_gone_is_not_dropped_in_passing(record, lines):
    record.write_text('\n'.join(['name fpt_plugin.Gone', *lines]))
    before = record.read_text()
    with pytest.raises(ValueError, match='name fpt_plugin.Gone'):
        public_api.main([])
    assert record.read_text() == before
    public_api.main(['--break'])
    assert record.read_text().splitlines() == sorted(lines)


def test_other_arguments_are_refused(record):
    with pytest.raises(ValueError, match='--brake'):
        public_api.main(['--brake'])
