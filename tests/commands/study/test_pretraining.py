"""Rows of a study that begin with a pre-training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.synthetic_data import write_camvid

from fpt_plugin.commands.same_settings import TrainingTime
from fpt_plugin.commands.study import command
from fpt_plugin.commands.study.running import Study, fingerprint

SHIPPED = Path(__file__).parents[3] / 'configs' / 'studies'
# Three steps of tiny backbones.
CONFIG = """
_base_ = {base!r}
backbone = dict(embed_dims=8, num_heads=(1, 1, 1, 2), window_size=2)
settings = dict(
    model=dict(backbone=backbone),
    train_dataloader=dict(batch_size=2, dataset=dict(indices=None)),
    default_hooks=dict(checkpoint=dict(interval=1)))
study = dict(rows=dict(
    greenmim=dict(pretrain=dict(length=3, settings=settings)),
    simmim=dict(pretrain=dict(length=2, settings=settings))))
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
             decode_head=dict(in_channels=[16] * 4, channels=16))
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(indices=[0, 1]), **loader)
val_dataloader = dict(dataset=dict(indices=[2, 3]), **loader)
train_cfg = dict(max_epochs=1, val_interval=1)
"""


@pytest.fixture
def study(tmp_path):
    write_camvid(tmp_path / 'data')
    path = tmp_path / 'small.py'
    path.write_text(CONFIG.format(base=str(SHIPPED / 'camvid_pretraining.py')))
    return path


def run(study, *args):
    folder = study.parent
    return command.main(command.parser().parse_args([
        str(study), '--results', str(folder / 'results'), '--work-dir',
        str(folder / 'work'), '--data-root', str(folder / 'data'), '--seeds', '0',
        *args]))


def result(study, row):
    return json.loads((study.parent / f'results/small/{row}-0.json').read_text())


@pytest.mark.slow
def test_rows_begin_with_their_pretraining(study, monkeypatch, capsys):
    """Interrupted and resumed, then found again; its cost is in the table."""
    after, fail = TrainingTime.after_train_iter, [True]

    def interrupted(self, runner, *args, **kwargs):
        after(self, runner, *args, **kwargs)
        if runner.iter == 1 and fail.pop():  # behind the second checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingTime, 'after_train_iter', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(study, '--rows', 'greenmim')
    monkeypatch.setattr(TrainingTime, 'after_train_iter', after)
    capsys.readouterr()
    shown = run(study)
    assert 'iter_2.pth of the same settings' in capsys.readouterr().out
    assert shown.count('none |') == 1 and '| pre-training |' in shown
    assert '3 steps, 0.' in shown and '2 steps, 0.' in shown
    work = study.parent / 'work/small'
    assert 'pretraining' not in result(study, 'random')
    for row, steps in (('greenmim', 3), ('simmim', 2)):
        found = result(study, row)['pretraining']
        assert found['steps'] == steps and found['seconds'] > 0 < found['cpu_seconds']
        folder, = work.glob(f'pretraining/{found["settings"]}-0')
        given = torch.load(folder / found['checkpoint'], weights_only=False)
        taken = torch.load(work / f'{row}-0/pretrained.pth')['state_dict']
        assert len(taken) > 100
        for key, value in taken.items():
            assert torch.equal(value, given['state_dict'][key]), key

    # Another schedule of the row, the same pre-training.
    study.write_text(study.read_text() + 'optim_wrapper = dict(optimizer=dict(lr=0))')
    capsys.readouterr()
    run(study, '--rows', 'greenmim')
    assert 'pretraining.json is there' in capsys.readouterr().out
    # Nothing was learnt after it: the row has its weights.
    trained = torch.load(work / 'greenmim-0/epoch_1.pth', weights_only=False)
    taken = torch.load(work / 'greenmim-0/pretrained.pth')['state_dict']
    for key, value in taken.items():
        assert torch.equal(trained['state_dict'][key], value), key


def test_settings_of_a_pretraining_count(study):
    """Those of the row's own config do not change it."""
    marks = []
    for old, new in (('length=3', 'length=3'), ('length=3', 'length=4'),
                     ('batch_size=2, dataset', 'batch_size=3, dataset'),
                     ('[0, 1]', '[1, 2]')):
        study.write_text(study.read_text().replace(old, new, 1))
        configs = Study.load(str(study)).configs_of('greenmim', 0)
        marks.append((fingerprint(*configs), fingerprint(configs[1])))
    rows, before = zip(*marks)
    assert len(set(rows)) == 4
    assert len(set(before)) == 3 and before[2] == before[3]
    again = Study.load(str(study)).configs_of('greenmim', 1)
    assert fingerprint(again[1]) not in before


def test_pretraining_reads_its_folder(study):
    row, before = Study.load(str(study)).configs_of('simmim', 0)
    assert before.train_dataloader.dataset.data_root == 'data/camvid/train'
    assert before.model.type == 'SimMIM' and 'decoder' not in before.model
    assert before.train_cfg.max_iters == before.param_scheduler[-1].end == 2
    assert 'pretrain' not in row


@pytest.mark.parametrize('old, new, message', [
    ('length=3', 'length=0', 'length of pretrain must be at least 1, got 0'),
    ('length=3', 'epochs=3', "pretrain of the row 'greenmim': .*'epochs'"),
    ('length=3', "length=3, config='none.py'", r'none\.py'),
])
def test_wrong_pretraining_is_named_first(study, old, new, message):
    study.write_text(study.read_text().replace(old, new, 1))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(study)
    assert not (study.parent / 'work').exists()
