"""The benchmark's command and its cases, at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
from helpers.memory_case import Holding
from rich.console import Console

from fpt_plugin.commands import plot_benchmark
from fpt_plugin.commands.benchmark.cases import AttentionCase, NeckCase
from fpt_plugin.commands.benchmark.command import cases_of, parser, table
from fpt_plugin.commands.benchmark.lambdas import BackboneCase, LambdaCase
from fpt_plugin.commands.benchmark.measuring import measure
from fpt_plugin.commands.benchmark.segmentors import SegmentorCase

ROOT = Path(__file__).parents[3]


def cases(*flags):
    return cases_of(parser().parse_args([str(flag) for flag in flags]))


def show(records, capsys):
    """Print the table and return it as text."""
    Console(width=140).print(
        table(records, dict(device='a CPU', threads=2, torch='2')))
    return capsys.readouterr().out


def assert_measured(record, *names, most=1e-5):
    """All candidates have times and a small error."""
    assert list(record['candidates']) == list(names)
    for found in record['candidates'].values():
        assert found['forward']['median'] > 0 < found['both']['median']
        assert 0 < found['error'] < most


def test_attention(bench, capsys):
    content, _ = bench(
        'attention', '--cases', 'st:P4', 'gt:P3-P4', 'gt:P2-P3@4', '--shape', 65,
        96, '--channels', 16, '--batch', 2, '--paths')
    assert content['environment']['torch'] == torch.__version__
    assert content['environment']['threads'] == torch.get_num_threads()
    sizes = {r['case']: (r['queries'], r['keys'], r['parts'])
             for r in content['records']}
    assert sizes == {
        'st:P4': ([5, 6], [5, 6], 2),
        'gt:P3-P4': ([9, 12], [5, 6], 4),
        'gt:P2-P3@4': ([17, 24], [3, 3], 4)
    }
    for record in content['records']:
        assert_measured(record, 'fpt_plugin', 'reference', 'chunked', 'fused', 'eager')
    shown = capsys.readouterr().out
    assert 'gt:P2-P3@4' in shown and 'reference' in shown and '1e-' in shown


def test_texture_transfer(bench):
    content, _ = bench('texture', '--cases', '24x32', '16x12-24x32', '--channels', 4)
    assert [(r['image'], r['reference']) for r in content['records']] == [
        ([24, 32], [24, 32]), ([16, 12], [24, 32])]
    for record in content['records']:
        ours, formula = record['candidates'].values()
        assert 0 < ours['error'] < 1e-5 and ours['both']['median'] > 0
        assert formula['both']['median'] > 0


def test_local_attention(bench):
    content, _ = bench('local-attention', '--cases', '9x8', '8x8-4x3', '--window',
                       3, '--channels', 8)
    one_size, two_sizes = content['records']
    assert (one_size['fine'], one_size['coarse']) == ([9, 8], [9, 8])
    assert (two_sizes['fine'], two_sizes['coarse']) == ([8, 8], [4, 3])
    assert_measured(one_size, 'fpt_plugin', 'reference')


def test_lambda(bench):
    content, _ = bench('lambda', '--cases', '9x8x4', '5x6x3', '--window', 5,
                       '--heads', 2, '--depth', 3)
    assert [(r['size'], r['channels'], r['window']) for r in content['records']
            ] == [([9, 8], 4, 5), ([5, 6], 3, 5)]
    for record in content['records']:
        assert_measured(record, 'fpt_plugin', 'conv2d', 'depthwise', 'conv3d',
                        'conv3d-v-first', 'attention', 'lambda')
    case = LambdaCase.parse('9x8x4', intra=2, orders=False)
    assert case.candidates() == ('fpt_plugin', 'conv2d', 'conv3d', 'conv3d-v-first')
    # One set of lambdas, or another one for each head.
    assert case.least_bytes('fpt_plugin') == 0
    assert case.least_bytes('conv2d') == 9 * 8 * 4 * 16 * 4
    assert case.least_bytes('conv3d') == 5 * case.least_bytes('conv2d')


def test_neck(bench):
    presets = ['light', 'default', 'full', 'paper', 'ufp']
    content, _ = bench('neck', '--preset', *presets, '--shape', 32, 64)
    records = content['records']
    assert [record['preset'] for record in records] == presets
    assert list(records[1]['candidates']) == ['fpt', 'resnet50', 'fpn']
    assert list(records[4]['candidates']) == ['fpt']
    case = NeckCase('ufp', shape=(65, 97), preset='ufp')
    maps = case.run('fpt', case.prepare('fpt'))
    assert [tuple(x.shape) for x in maps] == 4 * [(1, 256, 9, 13)]  # stride 8


def test_backbones(bench):
    content, _ = bench('backbone', '--shape', 65, 97)
    for record, depth, dilated in zip(content['records'], (50, 50), (False, True)):
        assert (record['depth'], record['dilated']) == (depth, dilated)
        assert record['shape'] == [65, 97]
        case = BackboneCase.parse(record['case'], (65, 97))
        ours, theirs = ([x.shape for x in case.run(name, case.prepare(name))]
                        for name in record['candidates'])
        assert ours == theirs
        assert ours[3][2:] == ((9, 13) if dilated else (3, 4))
    assert [case.shape for case in cases('backbone')] == [(800, 1344), (512, 1024)]


def test_segmentors(bench, capsys):
    """Measure inference of configs by name and by file."""
    plain = 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
    config = ROOT / 'configs/fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py'
    content, _ = bench('segmentor', '--configs', config, plain, '--shape', 65, 97)
    assert [r['mode'] for r in content['records']] == ['whole', 'slide']
    for record in content['records']:
        assert record['shape'] == [65, 97]
        assert list(record['candidates']) == [
            config.stem, 'fpn_r50_4xb2-80k_cityscapes-512x1024']
        for found in record['candidates'].values():
            assert found['forward']['median'] > 0 and 'both' not in found
    assert 'whole' in show(content['records'], capsys)
    case = SegmentorCase('slide', mode='slide', shape=(65, 97), configs=(plain, ))
    model, image = case.prepare(*case.candidates())
    assert model.test_cfg == dict(
        mode='slide', crop_size=(769, 769), stride=(513, 513))
    model.test_cfg.update(crop_size=(65, 65), stride=(33, 33))
    slide = case.run('', (model, image))
    model.test_cfg.mode = 'whole'
    whole = case.run('', (model, image))
    assert slide.shape == whole.shape == (1, 19, 65, 97)
    assert not torch.equal(slide, whole) and not slide.requires_grad


def test_peak_memory(progress, capsys):
    record, = measure([Holding('held')], 1, 1 << 40, progress, times=False)
    once, twice = record['candidates'].values()
    assert 'forward' not in once
    for found, size in ((once, 1 << 26), (twice, 1 << 27)):
        for kind in ('forward_bytes', 'both_bytes'):
            assert 0.95 * size < found[kind] < 1.2 * size
    assert 'MiB' in show([record], capsys)


def test_large_candidates_are_skipped(progress, capsys):
    record, = measure([Holding('held')], 1, 1 << 26, progress, memory=False)
    assert 'median' in record['candidates']['once']['forward']
    assert record['candidates']['twice'] == dict(
        skipped='would need more than 0 GiB')
    assert 'would need' in show([record], capsys)
    case = AttentionCase.parse('gt:P2-P3', (800, 1344))
    # 67,200 x 16,800 scores of 4 parts, twice
    assert case.least_bytes('reference') == 2 * 4 * 67200 * 16800 * 4
    assert case.least_bytes('fpt_plugin') == 0


@pytest.mark.parametrize('flags, words', [
    (['attention', '--cases', 'st:P3-P4'], "--cases must .* 'st:P3-P4'"),
    (['local-attention', '--cases', '97'], "--cases must .* '97'"),
    (['texture', '--cases', '24x30'], "multiples of 4, got '24x30'"),
    (['attention', '--repeats', '0'], '--repeats must be at least 1, got 0'),
    (['lambda', '--cases', '50x84'], "--cases must .* 50x84x64 .* '50x84'"),
    (['lambda', '--cases', '50x0x64'], '--cases must have the form'),
    (['lambda', '--window', '4'], '--window must be odd, got 4'),
    (['backbone', '--cases', '18'], "--cases must be 50, 101 or 152.* '18'"),
    (['alternatives', '--rows', 'PAFPN'], "--rows must include 'FPN'.*PAFPN"),
    *((['pretraining', '--cases', text], rf'--cases must be .*{text}')
      for text in ('s-224', 't', 't-225', 't-32', '224', 't-224-1')),
])
def test_bad_flags(flags, words):
    with pytest.raises(ValueError, match=words):
        cases(*flags)


def test_the_plot(tmp_path, capsys):
    flags = [str(path) for path in sorted((ROOT / 'benchmarks').glob(
        '*attention-cpu-float32.json'))]
    picture = plot_benchmark.main(plot_benchmark.parser().parse_args(
        [*flags, '--out', str(tmp_path / 'plot.png')]))
    assert len(flags) == 2 and str(picture) in capsys.readouterr().out
    height, width = cv2.imread(str(picture)).shape[:2]
    assert width > height > 500
    # Version 0.1.0 had other keys.
    measured = dict(both=dict(median=1.), both_bytes=1)
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(
        surroundings=dict(device='a CPU', threads=2),
        records=[dict(case='st:P4', contestants=dict(fpt_plugin=measured))])))
    (case, ), where = plot_benchmark.bars([str(path)])
    assert where['device'] == 'a CPU'
    assert case['candidates'] == dict(fpt_plugin=measured)
