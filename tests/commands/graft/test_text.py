"""The short config of a graft, and the graft command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.graft_detectors import FPN, NECKS, retinanet, wrapped, write
from mmengine.config import Config

from fpt_plugin.commands.graft import graft
from fpt_plugin.commands.graft.command import main, parser
from fpt_plugin.commands.graft.text import (
    check_gives,
    config_text,
    difference,
    write_config,
)
from fpt_plugin.commands.graft.weights import randomise
from fpt_plugin.openmmlab.models import build_model


def run(*args: str):
    return main(parser().parse_args([str(a) for a in args]))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize('name', NECKS)
def test_the_written_config_is_the_graft(name, tmp_path):
    base = write(retinanet(NECKS[name]), tmp_path / 'configs' / 'plain.py')
    out = tmp_path / 'elsewhere' / 'deep' / 'new.py'
    run(base, '--out', out, '--no-proof', '--no-costs')
    assert lines(out)[0] == "_base_ = '../../configs/plain.py'"
    new = Config.fromfile(out)
    want = graft(Config.fromfile(base))
    assert new.to_dict() == want.to_dict()
    assert os.listdir(out.parent) == ['new.py']
    build_model(new)


@pytest.mark.parametrize('cfg, flags, line', [
    (retinanet(FPN), [], "model = dict(neck=dict(type='FPT'))"),
    *((retinanet(FPN), ['--preset', preset],
       f"model = dict(neck=dict(type='FPT', preset={preset!r}))")
      for preset in ('light', 'default', 'full')),
    (retinanet(NECKS['PAFPN']), [],
     "model = dict(neck=dict(type='FPT', pyramid=dict(type='PAFPN')))"),
    (wrapped(retinanet(FPN)), [],
     "model = dict(detector=dict(neck=dict(type='FPT')))")])
def test_three_lines(cfg, flags, line, tmp_path):
    base = write(cfg, tmp_path / 'plain.py')
    run(base, '--out', tmp_path / 'new.py', '--no-costs', '--no-proof', *flags)
    assert lines(tmp_path / 'new.py') == [
        "_base_ = 'plain.py'",
        "custom_imports = dict(imports=['fpt_plugin'], "
        'allow_failed_imports=False)', line]
    with pytest.raises(SystemExit):
        run(base, '--preset', 'paper')


def test_bases_of_the_libraries_keep_their_names(tmp_path):
    base = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    run(base, '--out', tmp_path / 'new.py', '--no-costs', '--no-proof',
        '--lr-mult', '10', '--train-neck-only')
    assert lines(tmp_path / 'new.py')[0] == f'_base_ = {base!r}'
    cfg = Config.fromfile(tmp_path / 'new.py')
    assert cfg.model.neck.type == 'FPT' and cfg.model.neck.start_level == 1
    assert cfg.optim_wrapper.graft == dict(lr_mult=10.0, kinds=['FPT'])
    assert cfg.optim_wrapper.constructor == 'GraftOptimWrapperConstructor'
    assert 'paramwise_cfg' not in cfg.optim_wrapper
    assert cfg.custom_hooks == [dict(type='TrainGraftOnlyHook')]
    assert cfg.find_unused_parameters


def test_a_symbolic_link_to_a_folder(tmp_path):
    base = write(retinanet(FPN), tmp_path / 'plain.py')
    (tmp_path / 'far' / 'away').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'far' / 'away')
    out = tmp_path / 'link' / 'new.py'
    run(base, '--out', out, '--no-costs', '--no-proof')
    assert Config.fromfile(out).model.neck.type == 'FPT'
    assert Config.fromfile(out.resolve()).model.neck.type == 'FPT'


def test_options_are_written(tmp_path):
    base = write(retinanet(FPN), tmp_path / 'plain.py')
    run(base, '--out', tmp_path / 'new.py', '--no-costs', '--no-proof',
        '--cfg-options', 'model.bbox_head.num_classes=7', '--levels', '2',
        '--key-strides', '2', '1', '--neck-options', 'embed_channels=4')
    cfg = Config.fromfile(tmp_path / 'new.py')
    assert cfg.model.bbox_head.num_classes == 7
    assert cfg.model.neck == dict(
        FPN, type='FPT', num_levels=2, key_strides=[2, 1], embed_channels=4)


LAZY = '''from mmengine.config import read_base
from mmdet.models import FPN, ResNet, RetinaNet
default_scope = 'mmdet'
model = dict(
    type=RetinaNet,
    backbone=dict(type=ResNet, depth=18),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=16,
              num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=16))
'''


def test_lazy_configs_are_written_completely(tmp_path):
    """A text config cannot have a lazy config as its base."""
    (tmp_path / 'lazy.py').write_text(LAZY)
    run(tmp_path / 'lazy.py', '--out', tmp_path / 'new.py', '--no-proof',
        '--no-costs')
    assert not any('_base_' in line for line in lines(tmp_path / 'new.py'))
    neck = build_model(Config.fromfile(tmp_path / 'new.py')).neck
    assert type(neck).__name__ == 'FPT' and neck.num_levels == 4
    assert type(neck.pyramid).__name__ == 'FPN'


@pytest.mark.parametrize('old, new, want', [
    (dict(a=1), dict(a=1, b=2), dict(b=2)),
    (dict(a=dict(b=1, c=2)), dict(a=dict(b=1, c=3)), dict(a=dict(c=3))),
    (dict(a=dict(b=1, c=2)), dict(a=dict(b=1)),
     dict(a=dict(_delete_=True, b=1))),
    (dict(a=dict(x=dict(b=1, c=2), y=0)), dict(a=dict(x=dict(d=1), y=0)),
     dict(a=dict(x=dict(_delete_=True, d=1)))),
    (dict(a=None), dict(a=dict(b=1)), dict(a=dict(_delete_=True, b=1))),
    (dict(a=[1, dict(b=1)]), dict(a=[1, dict(b=2)]),
     dict(a=[1, dict(b=2)])),
    (dict(a=1, b=(1, 2)), dict(a=True, b=[1, 2]), dict(a=True, b=[1, 2])),
    (dict(a=dict(b=1)), dict(a=dict(b=1)), dict()),
    (dict(a=dict(b=1)), dict(a=3), dict(a=3)),
    # Keys that are no identifiers.
    ({}, dict(a={'neck.fusions': (1, ), 'lambda': [], 3: (2, 'x')}),
     dict(a={'neck.fusions': (1, ), 'lambda': [], 3: (2, 'x')})),
])
def test_difference(old, new, want, tmp_path):
    assert repr(difference(old, new)) == repr(want)
    (tmp_path / 'old.py').write_text(config_text(Config(), Config(old), None))
    text = config_text(Config(old), Config(new), 'old.py')
    write_config(text, Config(new), tmp_path / 'new.py')
    assert repr(Config.fromfile(tmp_path / 'new.py').to_dict()) == repr(new)


def test_configs_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="without \\['b'\\]"):
        difference(dict(a=1, b=2), dict(a=1))
    with pytest.raises(ValueError, match='model.neck'):
        write_config('model = dict(neck=1)', Config(dict(model=dict(neck=2))),
                     tmp_path / 'new.py')
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match='at b'):
        check_gives(Config(dict(a=1)), Config(dict(a=1, b=2)))


def test_config_proof_and_costs(tmp_path, capsys):
    cfg = retinanet(FPN)
    base = write(cfg, tmp_path / 'plain.py')
    model = build_model(cfg)
    randomise(model, seed=3)
    torch.save(dict(state_dict=model.state_dict(), meta={}),
               tmp_path / 'old.pth')
    run(base, '--out', tmp_path / 'new.py', '--checkpoint',
        tmp_path / 'old.pth', '--shape', '64', '64', '--repeats', '1',
        '--json', tmp_path / 'figures.json')
    shown = capsys.readouterr().out
    assert 'predictions' in shown and 'fpt' in shown and 'MiB' in shown
    assert Config.fromfile(tmp_path / 'new.py').load_from == str(
        tmp_path / 'old.pth')
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['identical'] is True
    costs = figures['costs']
    assert costs['time_ratio'] > 0
    assert set(costs['seconds']['grafted']) - set(
        costs['seconds']['plain']) == {'fpt'}
    for name, seconds in costs['seconds'].items():
        assert 'total' in seconds and min(seconds.values()) > 0
        assert costs['peak_bytes'][name] > 0
    plain, grafted = (costs['counts'][n] for n in ('plain', 'grafted'))
    assert grafted['total']['macs'] > plain['total']['macs'] > 0
    assert grafted['total']['parameters'] - plain['total']['parameters'] == [
        p['parameters'] for p in grafted['parts'] if p['name'] == 'fpt'][0]


def test_without_out_it_is_printed(tmp_path, capsys):
    base = write(retinanet(FPN), tmp_path / 'plain.py')
    run(base, '--no-proof', '--no-costs')
    assert "neck=dict(type='FPT')" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ['plain.py']


@pytest.mark.parametrize('flags, words', [
    (['--neck-options', 'fusion=concat'], 'changes neck.*--no-proof'),
    (['--neck-options', 'preset=paper'], 'changes neck.*--no-proof'),
    (['--out', '{base}', '--force'], 'is read here'),
    (['--out', 'new.yaml'], r'\.py'),
    (['--write-checkpoint'], '--backbone'),
    (['--checkpoint', 'missing.pth'], 'missing.pth'),
    (['--lr-mult', '0'], 'lr_mult'),
    (['--levels', '9'], 'levels.*9'),
    (['--backbone', 'lambda-resnet50'], 'depth 50.*18'),
])
def test_a_failed_command_writes_nothing(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = write(retinanet(FPN), tmp_path / 'plain.py')
    before = Path(base).read_text()
    flags = [flag.format(base=base) for flag in flags]
    if '--out' not in flags:
        flags += ['--out', 'new.py']
    with pytest.raises((OSError, ValueError), match=words):
        run(base, '--no-costs', *flags)
    assert os.listdir(tmp_path) == ['plain.py']
    assert Path(base).read_text() == before


def test_an_existing_file_needs_force(tmp_path):
    base = write(retinanet(FPN), tmp_path / 'plain.py')
    out = tmp_path / 'new.py'
    out.write_text('mine = 1\n')
    with pytest.raises(FileExistsError, match='--force'):
        run(base, '--out', out, '--no-proof', '--no-costs')
    assert out.read_text() == 'mine = 1\n'
    run(base, '--out', out, '--no-proof', '--no-costs', '--force')
    assert 'FPT' in out.read_text()
    with pytest.raises(IsADirectoryError):
        (tmp_path / 'folder.py').mkdir()
        run(base, '--out', tmp_path / 'folder.py', '--no-proof')
