"""Studies that test a trained row with other settings too."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from fpt_plugin.commands.study.running import Study, mark_of

CONFIG = """
crop = dict(type='CropWithReference', size=16)
image = dict(type='LoadImageFromFile')
data = dict(sequences=None, indices=None, data_root='frames',
            data_prefix=dict(img_path='clips'))
whole = dict(dataset=dict(data, pipeline=[*_base_.load, *_base_.degrade]))
lone = dict(dataset=dict(pipeline=[image, *_base_.degrade]))
study = dict(rows=dict(
    alone=dict(
        train_dataloader=dict(dataset=dict(pipeline=[image, crop, *_base_.degrade])),
        val_dataloader=lone,
        test_dataloader=lone),
    previous=dict(tests=dict(
        _delete_=True,
        unrelated=dict(test_dataloader=dict(dataset=dict(reference='other.png'))),
        no_reference=dict(test_dataloader=lone)))))
model = dict(channels=8, blocks=(1, 1, 1, 1), texture_channels=(4, 8, 8))
train_dataloader = dict(
    batch_size=2, dataset=dict(data, pipeline=[*_base_.load, crop, *_base_.degrade]))
val_dataloader = whole
test_dataloader = whole
train_cfg = dict(max_iters=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
"""


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def study(make_study, tmp_path):
    for number in range(3):
        draw(tmp_path / 'data' / 'clips' / f'{number}.png', number)
    draw(tmp_path / 'data' / 'other.png', 9)
    return make_study('camvid_ttsr.py', CONFIG)


def test_trains_once_and_tests_with_each_reference(study, run, tmp_path):
    args = ('--seeds', 0, '--data-root', tmp_path / 'data')
    shown = run(study, *args)
    out = tmp_path / 'results' / 'small' / 'previous-0.json'
    found = json.loads(out.read_text())
    assert set(found['tests']) == {'unrelated', 'no_reference'}
    figures = [found['metrics'], *found['tests'].values()]
    # The same images with other references: only the results differ.
    assert len({figure['PSNR_input'] for figure in figures}) == 1
    assert len({figure['PSNR'] for figure in figures}) == 3
    assert found['report'] == found['metrics']['PSNR'] and 'macs' not in found
    assert '| metric | alone | previous | previous, unrelated | previous, no' in shown
    assert f'| {found["tests"]["unrelated"]["PSNR"]:.2f} |' in shown
    assert 'sr4/PSNR' in found['metrics'] and '| PSNR_input |' in shown
    assert 'sr4/PSNR' not in shown  # the same as PSNR
    # Another test needs no other training.
    weights = tmp_path / 'work' / 'small' / 'previous-0' / 'iter_1.pth'
    before = weights.stat().st_mtime_ns
    study.write_text(study.read_text().replace("'other.png'", "'clips/0.png'"))
    run(study, *args)
    assert weights.stat().st_mtime_ns == before
    again = json.loads(out.read_text())
    assert again['metrics'] == found['metrics']
    assert again['tests']['unrelated'] != found['tests']['unrelated']
    with pytest.raises(ValueError, match='shape of the study small must be a height'):
        run(study, '--plot', tmp_path / 'plot.png')


def test_rows_of_the_shipped_study():
    study = Study.load('camvid_ttsr')
    alone, previous = (study.config_of(row, 0) for row in ('alone', 'previous'))
    steps = [t['type'] for t in previous.train_dataloader.dataset.pipeline]
    assert steps[1] == 'LoadReference'
    # Without the reference, everything else is the same.
    alone.train_dataloader.dataset.pipeline.insert(
        1, previous.train_dataloader.dataset.pipeline[1])
    assert alone.train_dataloader == previous.train_dataloader
    assert alone.optim_wrapper == previous.optim_wrapper
    normal = previous.test_dataloader.dataset
    tests = {name: config.test_dataloader.dataset
             for name, config in study.tests_of('previous', 0).items()}
    assert list(tests) == ['second_before', 'unrelated', 'no_reference']
    assert tests['second_before'] == dict(normal, distance=15)
    assert tests['unrelated'] == dict(normal, reference='train/0001TP_007500.png')
    assert tests['no_reference'] == dict(
        normal, pipeline=alone.test_dataloader.dataset.pipeline)
    assert [t['type'] for t in tests['no_reference'].pipeline] == [
        'LoadImageFromFile', 'Degrade', 'PackImage']


def test_results_from_before_there_were_tests(study, run, tmp_path):
    folder = tmp_path / 'results' / 'small'
    folder.mkdir(parents=True)
    for row in ('alone', 'previous'):
        for seed, psnr in enumerate((20., 22.)):
            more = {} if row == 'alone' else dict(
                metrics=dict(PSNR=psnr), tests=dict(unrelated=dict(PSNR=psnr - 1)))
            (folder / f'{row}-{seed}.json').write_text(json.dumps(dict(
                study='small', row=row, seed=seed, choice=1., report=psnr,
                parameters=10**6, settings='', **more)))
    assert '| PSNR | 21.00 ± 1.41 | 21.00 ± 1.41 | 20.00 ± 1.41 |' in run(
        study, '--table')


@pytest.mark.parametrize('old, new', [
    ("unrelated=dict(test_dataloader", "unrelated=dict(train_dataloader"),
    ("no_reference=dict(test_dataloader=lone)", "no_reference=3")])
def test_settings_that_a_test_does_not_read(study, run, old, new):
    study.write_text(study.read_text().replace(old, new))
    with pytest.raises(ValueError, match="tests of the row 'previous' must have dicts"):
        run(study, '--seeds', 0)


def test_names_of_tests_belong_to_the_settings(study):
    before = mark_of(Study.load(str(study)), 'previous', 0)
    study.write_text(study.read_text().replace('unrelated', 'other'))
    assert mark_of(Study.load(str(study)), 'previous', 0) != before
