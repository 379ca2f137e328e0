"""Rows that start with the trained weights of another row."""

from __future__ import annotations

import json
import re

import pytest
import torch
from helpers.synthetic_data import write_bccd

from fpt_plugin.commands.study.running import Study, mark_of

# With a learning rate of zero a row keeps the weights that it starts with.
CONFIG = """
study = dict(baseline='default', rows=dict(
    _delete_=True,
    trained=dict(model=dict(neck=dict(type='FPN')),
                 optim_wrapper=dict(optimizer=dict(lr=1e-3))),
    default=dict(after='trained'),
    restored=dict(after='trained', baseline='default', pretrain=dict(
        config='pretraining/restoration-identity_faster-rcnn_mobilenet-v2_fpt_1xb8-2k_'
        'trees.py',
        images='JPEGImages', length=1, settings=dict(
            model=dict(backbone=dict(init_cfg=None)),
            train_dataloader=dict(
                batch_size=2, num_workers=0, persistent_workers=False),
            param_scheduler=[], optim_wrapper=dict(optimizer=dict(lr=1e-2)),
            default_hooks=dict(checkpoint=dict(interval=1)),
            val_dataloader=None, val_evaluator=None, val_cfg=None)))))
model = dict(neck=dict(type='FPT'), backbone=dict(init_cfg=None))
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(indices=[0, 1]), **loader)
val_dataloader = dict(dataset=dict(indices=[2]), **loader)
optim_wrapper = dict(optimizer=dict(lr=0))
train_cfg = dict(max_epochs=1, val_interval=1)
"""


@pytest.fixture
def study(make_study, tmp_path):
    write_bccd(tmp_path / 'data')
    return make_study('bccd.py', CONFIG)


@pytest.mark.slow
def test_rows_start_with_a_trained_row(study, run, tmp_path):
    """Plain and with pre-trained branches; the trained row is trained if needed."""
    def newest(row):
        return torch.load(tmp_path / f'work/small/{row}-0/epoch_1.pth',
                          weights_only=False)['state_dict']

    run(study, '--rows', 'default', 'restored', '--seeds', 0, '--data-root',
        tmp_path / 'data')
    results = tmp_path / 'results' / 'small'
    assert {path.name for path in results.iterdir()} == {
        'default-0.json', 'restored-0.json'}
    found = json.loads((results / 'restored-0.json').read_text())
    assert found['pretraining']['steps'] == 1
    trained, plain, restored = map(newest, ('trained', 'default', 'restored'))
    for key, value in trained.items():
        key = key.replace('neck.', 'neck.pyramid.')
        assert torch.equal(plain[key], value) and torch.equal(restored[key], value), key
    changed = {key for key in plain if not torch.equal(plain[key], restored[key])}
    assert changed and all(
        re.match(r'neck\.(self|grounding|rendering)_transformers\.', key)
        for key in changed)


    # A row that started with other weights is not resumed.
    study.write_text(study.read_text().replace('lr=1e-3', 'lr=2e-3'))
    run(study, '--rows', 'default', '--seeds', 0, '--data-root', tmp_path / 'data')
    again = newest('trained')
    assert not all(torch.equal(again[key], trained[key]) for key in trained)
    plain = newest('default')
    assert all(torch.equal(plain[key.replace('neck.', 'neck.pyramid.')], value)
               for key, value in again.items())


def test_a_start_needs_branches_that_keep_it(study):
    study.write_text(study.read_text().replace('restoration-identity_', 'restoration_'))
    with pytest.raises(ValueError, match=r"'restored' must have model\.keep_identity"):
        mark_of(Study.load(str(study)), 'restored', 0)


def test_settings_of_the_start_count(study):
    def marks():
        loaded = Study.load(str(study))
        return [mark_of(loaded, row, 0) for row in loaded.rows]

    before = marks()
    study.write_text(study.read_text().replace('lr=1e-3', 'lr=2e-3'))
    assert not set(before) & set(marks()) and len(set(before)) == 3
