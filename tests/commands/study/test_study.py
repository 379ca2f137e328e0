"""The study command: rows, results, table."""

from __future__ import annotations

import json

import pytest

from fpt_plugin.commands.study import table
from fpt_plugin.commands.study.running import Study, fingerprint

CONFIG = """
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


@pytest.fixture
def study(make_study):
    return make_study('look-up.py', CONFIG)


def write(study, reports, name='small'):
    """Write results: the reported metrics of each row, by seed."""
    folder = study.parent / 'results' / 'small'
    folder.mkdir(parents=True, exist_ok=True)
    for row, values in reports.items():
        for seed, report in enumerate(values):
            (folder / f'{row}-{seed}.json').write_text(json.dumps(dict(
                study=name, row=row, seed=seed, choice=0.5, report=report,
                macs=10**9, parameters=10**6, cpu_seconds_per_step=0.5,
                settings='')))
    return folder


@pytest.mark.slow
def test_rows_are_trained_and_skipped_when_finished(study, run):
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
    assert 0 <= fpn['report'] <= 100 and fpn['cpu_seconds_per_step'] > 0
    run(study, '--table', '--picture', study.parent / 'answers.png')
    assert (study.parent / 'answers.png').stat().st_size > 10_000
    before = [f.stat().st_mtime_ns for f in files]
    assert run(study, '--seeds', 0) == shown
    assert [f.stat().st_mtime_ns for f in files] == before
    # Only the row with changed settings runs again.
    study.write_text(study.read_text().replace("'light'", "'default'", 2))
    run(study, '--seeds', 0)
    assert files[0].stat().st_mtime_ns == before[0]
    assert json.loads(files[1].read_text())['macs'] > light['macs']


@pytest.mark.parametrize('name', [
    'look-up', 'camvid', 'camvid_sgd', 'camvid_pretraining', 'camvid_restoration',
    'bccd', 'bccd_restoration', 'trees', 'nuclei', 'nuclei_restoration'])
def test_shipped_studies_have_different_rows(name):
    study = Study.load(name)
    configs = [study.config_of(row, 0) for row in study.rows]
    marks = {fingerprint(*study.configs_of(row, 0)) for row in study.rows}
    assert len(marks) == len(configs)
    base, same, other_seed = (study.config_of(study.baseline, seed)
                              for seed in (0, 0, 1))
    assert fingerprint(base) == fingerprint(same) != fingerprint(other_seed)
    # All rows have the same optimiser and data.
    for config in configs:
        assert config.optim_wrapper == base.optim_wrapper
        assert config.train_dataloader == base.train_dataloader
    base.default_hooks.checkpoint.type = 'changed by a runner'
    assert 'changed by' not in study.config_of(study.baseline, 0).pretty_text


def test_the_table_has_paired_differences(study, run):
    folder = write(study, dict(fpn=[50, 52, 54], light=[51, 54, 55]))
    rows = table.read_rows(Study.load(str(study)), folder)
    assert [row.name for row in rows] == ['fpn', 'light']
    assert rows[0].gains == () and rows[1].gains == (1, 2, 1)
    # t with two degrees of freedom is 4.3027; the deviation of the gains
    # is 0.57735.
    assert table.interval(rows[1].gains) == pytest.approx(1.4342, abs=1e-4)
    assert '| light | 3 | 0.50 | 53.33 ± 2.08 | +1.33 ± 1.43 |' in run(
        study, '--table')
    # One seed has no interval.
    for file in folder.iterdir():
        file.unlink()
    write(study, dict(fpn=[50], light=[49.5, 60]))
    shown = run(study, '--table')
    assert '| light | 2 | 0.50 | 54.75 ± 7.42 | -0.50 |' in shown
    assert '| fpn | 1 | 0.50 | 50.00 |  |' in shown


def test_a_row_may_have_another_baseline(study, run):
    write(study, dict(fpn=[50, 52], light=[51, 54], full=[51.5, 55]))
    study.write_text(study.read_text().replace(
        'fpn=dict(),', "fpn=dict(), full=dict(baseline='light'),"))
    shown = run(study, '--table')
    assert '| 53.25 ± 2.47 | +0.75 ± 3.18 over light |' in shown
    assert '| 52.50 ± 2.12 | +1.50 ± 6.35 over fpn |' in shown
    assert '| 51.00 ± 1.41 |  | 1.00 M |' in shown
    assert 'baseline' not in Study.load(str(study)).config_of('full', 0)


@pytest.mark.parametrize('args, results, message', [
    (['--rows', 'fpn', 'fpt'], {}, "rows must be of .*'fpt'"),
    (['--table'], {}, 'has no result of the study small'),
    (['--table'], dict(name='other', reports=dict(fpn=[50])),
     'not a result of the study small'),
    (['--table', '--picture', 'a.png'], dict(reports=dict(fpn=[50])),
     "train the row 'fpn' first"),
])
def test_wrong_arguments_and_results(study, run, args, results, message):
    if results:
        write(study, **results)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(study, *args)


@pytest.mark.parametrize('text, message', [
    ("", r'must define study=dict'),
    ("study = dict(title='x')", 'missing 3 required positional arguments'),
    ("study = dict(title='x', metric='y', baseline='z', shape=(1, 1), "
     "rows=dict(a=dict()))", r"baseline must be one of the rows \['a'\]"),
    ("study = dict(title='x', metric='y', baseline='a', "
     "rows=dict(a=dict(baseline='a')))", "row 'a' must be another of"),
    *((f"study = dict(title='x', metric='y', baseline='a', "
       f"rows=dict(a=dict(), b=dict(after='a'), c=dict({given})))", message)
      for given, message in (
          ("baseline='c'", r"row 'c' must be another of .*'b'.*, got 'c'"),
          ("baseline='d'", "row 'c' must be another of .*, got 'd'"),
          ("after='b'", r"after of the row 'c' must be one of \['a'\], got 'b'"),
          ("after='c'", r"after of the row 'c' must be one of \['a'\], got 'c'"))),
])
def test_wrong_configs(tmp_path, text, message):
    path = tmp_path / 'wrong.py'
    path.write_text("default_scope = 'mmseg'\nmodel = dict(type='X')\n" + text)
    with pytest.raises(ValueError, match=message):
        Study.load(str(path))
    with pytest.raises(FileNotFoundError, match=r"one of .*'look-up'.*'lookup'"):
        Study.load('lookup')
