"""Rows of a study that start with a pre-training."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.synthetic_data import write_camvid

from fpt_plugin.commands.same_settings import TrainingTime
from fpt_plugin.commands.study.running import Study, fingerprint

# Three steps of tiny backbones.
CONFIG = """
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
def study(make_study, tmp_path):
    write_camvid(tmp_path / 'data')
    return make_study('camvid_pretraining.py', CONFIG)


@pytest.mark.slow
def test_rows_start_with_their_pretraining(study, run, monkeypatch, capsys):
    """Interrupt, resume and reuse it; its cost is in the table."""
    data = '--data-root', study.parent / 'data', '--seeds', 0
    after, fail = TrainingTime.after_train_iter, [True]

    def interrupted(self, runner, *args, **kwargs):
        after(self, runner, *args, **kwargs)
        if runner.iter == 1 and fail.pop():  # after the second checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingTime, 'after_train_iter', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(study, '--rows', 'greenmim', *data)
    monkeypatch.setattr(TrainingTime, 'after_train_iter', after)
    capsys.readouterr()
    shown = run(study, *data)
    assert 'iter_2.pth with the same settings' in capsys.readouterr().out
    assert shown.count('none |') == 1 and '| pre-training |' in shown
    assert '3 steps, 0.' in shown and '2 steps, 0.' in shown
    work, results = study.parent / 'work/small', study.parent / 'results/small'
    assert 'pretraining' not in json.loads((results / 'random-0.json').read_text())
    for row, steps in (('greenmim', 3), ('simmim', 2)):
        found = json.loads((results / f'{row}-0.json').read_text())['pretraining']
        assert found['steps'] == steps and found['seconds'] > 0 < found['cpu_seconds']
        folder, = work.glob(f'pretraining/{found["settings"]}-0')
        given = torch.load(folder / found['checkpoint'], weights_only=False)
        taken = torch.load(work / f'{row}-0/pretrained.pth')['state_dict']
        assert len(taken) > 100
        for key, value in taken.items():
            assert torch.equal(value, given['state_dict'][key]), key

    # Another schedule of the row has the same pre-training.
    study.write_text(study.read_text() + 'optim_wrapper = dict(optimizer=dict(lr=0))')
    capsys.readouterr()
    run(study, '--rows', 'greenmim', *data)
    assert 'pretraining.json is finished' in capsys.readouterr().out
    # With a learning rate of 0 the row keeps the pre-trained weights.
    trained = torch.load(work / 'greenmim-0/epoch_1.pth', weights_only=False)
    taken = torch.load(work / 'greenmim-0/pretrained.pth')['state_dict']
    for key, value in taken.items():
        assert torch.equal(trained['state_dict'][key], value), key


def test_settings_of_a_pretraining_count(study):
    """Settings of the row itself do not change its pre-training's fingerprint."""
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
def test_a_wrong_pretraining_fails_before_training(study, run, old, new, message):
    study.write_text(study.read_text().replace(old, new, 1))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(study)
    assert not (study.parent / 'work').exists()
