"""The public API has not lost anything; helpers/public_api.py defines it."""

from __future__ import annotations

import argparse

import pytest
from helpers import public_api
from mmengine.registry import MODELS

from fpt_plugin.commands import COMMANDS, publish_model

HOW = 'PYTHONPATH=.:tests python -W ignore tests/helpers/public_api.py records them'


@pytest.fixture(scope='module')
def lines():
    return public_api.current()


@pytest.fixture(scope='module')
def old():
    return public_api.recorded()


def broken(old, new):
    return public_api.compare(old, new)[0]


# ----------------------------------------------------------------- the record


def test_nothing_is_gone_and_additions_are_recorded(lines, old):
    found, added = public_api.compare(old, lines)
    assert not found, 'put it back, or see helpers/public_api.py:\n' + '\n'.join(found)
    assert not added, f'{HOW}:\n' + '\n'.join(added)
    assert old == sorted(set(old))


def test_record_has_every_registered_module_and_command(old):
    starts = [f'model {name}: ' for name, found in MODELS.module_dict.items()
              if found.__module__.startswith('fpt_plugin')]
    starts += [f'flag {name}' for name in COMMANDS]
    starts += [f'tensor {name}: ' for name in public_api.MODULES]
    for start in starts:
        assert any(line.startswith(start) for line in old), start


# ------------------------------------------------------------------ comparison


@pytest.mark.parametrize('start', ['model ', 'hook ', 'flag ', 'tensor '])
def test_removed_lines_break(old, start):
    """The first and the last line of each kind."""
    kind = [line for line in old if line.startswith(start)]
    for line in (kind[0], kind[-1]):
        assert broken(old, [x for x in old if x != line]) == [line]


@pytest.mark.parametrize('change', [
    dict(self_transformer=None), dict(embed_channels=64), dict(fusion='concat'),
    dict(grounding_transformer=dict(type='GroundingTransformer',
                                    num_mixtures=2)),
    dict(fusion_norm_cfg=dict(type='BN')), dict(num_levels=3)])
def test_another_state_dict_breaks(old, change):
    """A tensor is removed, has another size, or is new."""
    mine = [line for line in old if line.startswith('tensor FPT: ')]
    assert broken(mine, public_api.tensors({'FPT': public_api.FPN})) == []
    assert broken(mine, public_api.tensors(
        {'FPT': {**public_api.FPN, **change}}))


def test_new_module_is_an_addition(old):
    new = list(public_api.tensors({'another': public_api.FPN}))
    assert public_api.compare(old, [*old, *new]) == ([], new)


def flags(parser):
    return list(public_api.flags('publish_model', parser))


def test_flags_of_a_changed_command_break():
    old = flags(publish_model.parser())
    more = publish_model.parser()
    more.add_argument('--quiet', action='store_true')
    assert public_api.compare(old, flags(more)) == (
        [], ['flag publish_model: --quiet nargs=0'])
    more.add_argument('--key', required=True)
    assert broken(old, flags(more)) == ['flag publish_model: --key required']
    less = argparse.ArgumentParser()
    less.add_argument('out')
    less.add_argument('source')
    assert broken(old, flags(less))[:3] == [
        'flag publish_model: [0] source required',
        'flag publish_model: [1] out required',
        'flag publish_model: --force nargs=0']


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


def test_removed_lines_need_a_flag(record, lines):
    record.write_text('\n'.join(['model Gone: channels', *lines]))
    before = record.read_text()
    for arguments, words in (([], 'model Gone'), (['--brake'], '--brake')):
        with pytest.raises(ValueError, match=words):
            public_api.main(arguments)
        assert record.read_text() == before
    public_api.main(['--break'])
    assert record.read_text().splitlines() == sorted(lines)
