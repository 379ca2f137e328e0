"""The study command: rows, results, table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fpt_plugin.commands.study import command, table
from fpt_plugin.commands.study.running import Study, fingerprint

CONFIG = """
_base_ = {base!r}
study = dict(
    title='Small', metric='aAcc', baseline='fpn', shape=(96, 96),
    rows=dict(
        _delete_=True,
        fpn=dict(),
        light=dict(model=dict(neck=dict(type='FPT', preset='light')))))
pipeline = [dict(type='DrawLookUp', size=96), dict(type='PackSegInputs')]
model = dict(data_preprocessor=dict(size=(96, 96)))
loader = dict(num_workers=0, persistent_workers=False, batch_size=2)
train_dataloader = dict(
    dataset=dict(length=4, pipeline=pipeline), **loader)
val_dataloader = dict(dataset=dict(length=2, pipeline=pipeline), **loader)
test_dataloader = dict(dataset=dict(length=2, pipeline=pipeline), **loader)
train_cfg = dict(max_iters=2, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
"""
SHIPPED = Path(__file__).parents[3] / 'configs' / 'studies'


@pytest.fixture
def study(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(CONFIG.format(base=str(SHIPPED / 'look-up.py')))
    return path


def run(study, *args):
    folder = study.parent
    return command.main(command.parser().parse_args([
        str(study), '--results', str(folder / 'results'), '--work-dir',
        str(folder / 'work'), *map(str, args)
    ]))


def result(row, seed, report, study='small', **others):
    return dict(
        study=study, row=row, seed=seed, choice=0.5, report=report, macs=10**9,
        parameters=10**6, seconds_per_step=0.5, settings='', **others)


def write(folder, *results):
    folder.mkdir(parents=True, exist_ok=True)
    for r in results:
        (folder / f'{r["row"]}-{r["seed"]}.json').write_text(json.dumps(r))


@pytest.mark.slow
def test_rows_are_trained_and_skipped_when_finished(study, capsys):
    out = study.parent / 'table.md'
    shown = run(study, '--seeds', 0, '--markdown', out, '--plot',
                study.parent / 'plot.png')
    assert out.read_text() == f'{shown}\n'
    assert (study.parent / 'plot.png').stat().st_size > 1000
    files = sorted((study.parent / 'results' / 'small').glob('*.json'))
    assert [f.name for f in files] == ['fpn-0.json', 'light-0.json']
    fpn, light = (json.loads(f.read_text()) for f in files)
    assert fpn['steps'] == light['steps'] == 2
    assert light['macs'] > fpn['macs'] and len(light['curve']) == 3
    assert 0 <= fpn['report'] <= 100 and fpn['seconds_per_step'] > 0
    run(study, '--table', '--picture', study.parent / 'answers.png')
    assert (study.parent / 'answers.png').stat().st_size > 10_000
    before = [f.stat().st_mtime_ns for f in files]
    capsys.readouterr()
    assert run(study, '--seeds', 0) == shown
    assert [f.stat().st_mtime_ns for f in files] == before
    # Other settings are another run, those of the other row stay.
    study.write_text(study.read_text().replace("'light'", "'default'", 2))
    run(study, '--seeds', 0)
    assert files[0].stat().st_mtime_ns == before[0]
    assert json.loads(files[1].read_text())['macs'] > light['macs']


@pytest.mark.parametrize('name', [
    'look-up', 'camvid', 'camvid_sgd', 'camvid_pretraining', 'camvid_restoration',
    'bccd', 'trees', 'nuclei', 'nuclei_restoration'])
def test_shipped_studies_have_different_rows(name):
    study = Study.load(name)
    configs = [study.config_of(row, 0) for row in study.rows]
    marks = {fingerprint(*study.configs_of(row, 0)) for row in study.rows}
    assert len(marks) == len(configs)
    again = study.config_of(study.baseline, 0)
    assert fingerprint(again) == fingerprint(
        study.config_of(study.baseline, 0))
    assert fingerprint(again) != fingerprint(
        study.config_of(study.baseline, 1))
    again.default_hooks.checkpoint.type = 'changed by a runner'
    assert 'changed by' not in study.config_of(study.baseline, 0).pretty_text
    again = configs[list(study.rows).index(study.baseline)]
    # The baseline's settings are in every row, except those of the row.
    for config in configs:
        assert config.optim_wrapper == again.optim_wrapper
        assert config.train_dataloader == again.train_dataloader


def test_the_table_has_paired_differences(study):
    folder = study.parent / 'results' / 'small'
    write(folder, *(result('fpn', s, x) for s, x in enumerate([50, 52, 54])),
          *(result('light', s, x) for s, x in enumerate([51, 54, 55])))
    small = Study.load(str(study))
    rows = table.read_rows(small, folder)
    assert [row.name for row in rows] == ['fpn', 'light']
    assert rows[0].gains == () and rows[1].gains == (1, 2, 1)
    # t with two degrees of freedom is 4.3027; the deviation of the gains
    # is 0.57735.
    assert table.interval(rows[1].gains) == pytest.approx(1.4342, abs=1e-4)
    assert '| light | 3 | 0.50 | 53.33 ± 2.08 | +1.33 ± 1.43 |' in run(
        study, '--table')


def test_one_seed_has_no_interval(study):
    folder = study.parent / 'results' / 'small'
    write(folder, result('fpn', 0, 50), result('light', 0, 49.5),
          result('light', 1, 60))
    shown = run(study, '--table')
    assert '| light | 2 | 0.50 | 54.75 ± 7.42 | -0.50 |' in shown
    assert '| fpn | 1 | 0.50 | 50.00 |  |' in shown


@pytest.mark.parametrize('args, message', [
    (['--rows', 'fpn', 'fpt'], "rows must be of .*'fpt'"),
    (['--table'], 'holds no result of the study small'),
])
def test_wrong_arguments(study, args, message):
    with pytest.raises(ValueError, match=message):
        run(study, *args)


@pytest.mark.parametrize('text, message', [
    ("", r'must define study=dict'),
    ("study = dict(title='x')", 'missing 4 required positional arguments'),
    ("study = dict(title='x', metric='y', baseline='z', shape=(1, 1), "
     "rows=dict(a=dict()))", r"baseline must be one of the rows \['a'\]"),
])
def test_wrong_configs(tmp_path, text, message):
    path = tmp_path / 'wrong.py'
    path.write_text("default_scope = 'mmseg'\nmodel = dict(type='X')\n" + text)
    with pytest.raises(ValueError, match=message):
        Study.load(str(path))


def test_a_picture_needs_trained_rows(study):
    write(study.parent / 'results' / 'small', result('fpn', 0, 50))
    with pytest.raises(FileNotFoundError, match="train the row 'fpn' first"):
        run(study, '--table', '--picture', study.parent / 'answers.png')


def test_an_unknown_study_is_named():
    with pytest.raises(FileNotFoundError, match=r"one of .*'look-up'.*'lookup'"):
        Study.load('lookup')


def test_a_foreign_result_is_refused(study):
    folder = study.parent / 'results' / 'small'
    write(folder, result('fpn', 0, 50, study='other'))
    with pytest.raises(ValueError, match='not a result of the study small'):
        run(study, '--table')
