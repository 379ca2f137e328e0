"""The benchmark's command, at sizes that take no time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from helpers.memory_case import Holding
from rich.console import Console
from rich.progress import Progress

from fpt_plugin.commands import plot_benchmark
from fpt_plugin.commands.benchmark.cases import (
    AttentionCase,
    LocalCase,
    NeckCase,
    level_size,
)
from fpt_plugin.commands.benchmark.command import cases_of, main, parser, table
from fpt_plugin.commands.benchmark.lambdas import BackboneCase, LambdaCase
from fpt_plugin.commands.benchmark.measuring import measure
from fpt_plugin.commands.benchmark.segmentors import SegmentorCase
from fpt_plugin.commands.plot_benchmark import bars

ROOT = Path(__file__).parents[2]


def bench(*flags):
    return main(parser().parse_args([str(flag) for flag in flags]))


def show(records):
    """The table as text."""
    shown = io.StringIO()
    Console(file=shown, width=140).print(
        table(records, dict(device='a CPU', threads=2, torch='2')))
    return shown.getvalue()


@pytest.fixture
def progress():
    with Progress(console=Console(quiet=True)) as progress:
        yield progress


def test_attention(tmp_path, capsys):
    out = bench('attention', '--cases', 'st:P4', 'gt:P3-P4', 'gt:P2-P3@4',
                '--shape', 65, 96, '--channels', 16, '--repeats', 2, '--batch',
                2, '--no-memory', '--out', tmp_path / 'a.json')
    content = json.loads(out.read_text())
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
        assert list(record['candidates']) == [
            'fpt_plugin', 'reference', 'sdpa'
        ]
        for found in record['candidates'].values():
            assert found['forward']['median'] > 0 < found['both']['median']
            assert found['error'] < 1e-5
    shown = capsys.readouterr().out
    assert 'gt:P2-P3@4' in shown and 'reference' in shown and '1e-' in shown


def test_local_attention(tmp_path):
    out = bench('local-attention', '--cases', '9x8', '8x8-4x3', '--window', 3,
                '--channels', 8, '--repeats', 1, '--no-memory', '--out',
                tmp_path / 'a.json')
    records = json.loads(out.read_text())['records']
    assert [(r['fine'], r['coarse']) for r in records
            ] == [([9, 8], [9, 8]), ([8, 8], [4, 3])]
    errors = [c['error'] for c in records[0]['candidates'].values()]
    assert len(errors) == 2 and max(errors) < 1e-5


def test_neck(tmp_path):
    presets = ['light', 'default', 'full', 'paper']
    out = bench('neck', '--preset', *presets, '--shape', 32, 64,
                '--repeats', 1, '--no-memory', '--out', tmp_path / 'a.json')
    records = json.loads(out.read_text())['records']
    assert [record['preset'] for record in records] == presets
    assert set(records[1]['candidates']) == {'fpt', 'resnet50', 'fpn'}


def test_neck_of_segmentors(tmp_path):
    """UFP's maps have an eighth of the image's size."""
    out = bench('neck', '--preset', 'ufp', '--shape', 65, 97, '--repeats', 1,
                '--no-memory', '--out', tmp_path / 'a.json')
    record, = json.loads(out.read_text())['records']
    assert list(record['candidates']) == ['fpt']
    case = NeckCase('ufp', shape=(65, 97), preset='ufp')
    maps = case.run('fpt', case.prepare('fpt'))
    assert [tuple(x.shape) for x in maps] == 4 * [(1, 256, 9, 13)]


def test_lambda(tmp_path, capsys):
    out = bench('lambda', '--cases', '9x8x4', '5x6x3', '--window', 5, '--heads',
                2, '--depth', 3, '--repeats', 1, '--no-memory', '--out',
                tmp_path / 'a.json')
    records = json.loads(out.read_text())['records']
    assert [(r['size'], r['channels'], r['window']) for r in records
            ] == [([9, 8], 4, 5), ([5, 6], 3, 5)]
    for record in records:
        assert list(record['candidates']) == [
            'fpt_plugin', 'conv2d', 'depthwise', 'conv3d', 'conv3d-v-first',
            'attention', 'lambda'
        ]
        for found in record['candidates'].values():
            assert found['forward']['median'] > 0 < found['both']['median']
            assert 0 < found['error'] < 1e-5
    assert 'conv3d-v-first' in capsys.readouterr().out


def test_lambda_of_an_intra_depth_without_orders():
    case = LambdaCase.parse('9x8x4', intra=2, orders=False)
    assert case.candidates() == ('fpt_plugin', 'conv2d', 'conv3d',
                                  'conv3d-v-first')
    # one set of lambdas, or one more for each head
    assert case.least_bytes('fpt_plugin') == 0
    assert case.least_bytes('conv2d') == 9 * 8 * 4 * 16 * 4
    assert case.least_bytes('conv3d') == 5 * case.least_bytes('conv2d')


def test_backbone(tmp_path):
    out = bench('backbone', '--shape', 33, 64, '--repeats', 1, '--no-memory',
                '--out', tmp_path / 'a.json')
    plain, dilated = json.loads(out.read_text())['records']
    assert (plain['depth'], plain['dilated']) == (50, False)
    assert dilated['dilated'] and dilated['shape'] == [33, 64]
    assert list(plain['candidates']) == ['LambdaResNet', 'mmdet.ResNet']


def test_backbones_compare_maps_of_one_size():
    for text in ('50', '50-d8'):
        case = BackboneCase.parse(text, (65, 97))
        sizes = [[tuple(x.shape) for x in case.run(name, case.prepare(name))]
                 for name in case.candidates()]
        assert sizes[0] == sizes[1]
        assert sizes[0][3][2:] == ((3, 4) if text == '50' else (9, 13))


def test_segmentors(tmp_path):
    """Inference alone, by names of configs and by files."""
    plain = 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
    config = ROOT / 'configs/fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py'
    out = bench('segmentor', '--configs', config, plain, '--shape', 65, 97,
                '--repeats', 1, '--no-memory', '--out', tmp_path / 'a.json')
    whole, slide = json.loads(out.read_text())['records']
    assert (whole['mode'], slide['mode']) == ('whole', 'slide')
    for record in (whole, slide):
        assert record['shape'] == [65, 97]
        assert list(record['candidates']) == [
            config.stem, 'fpn_r50_4xb2-80k_cityscapes-512x1024']
        for found in record['candidates'].values():
            assert found['forward']['median'] > 0 and 'both' not in found
    assert 'whole' in show([whole])


def test_segmentors_slide_in_the_windows_of_their_config():
    case = cases_of(parser().parse_args(['segmentor', '--shape', '65', '97']))[1]
    assert case.mode == 'slide' and len(case.configs) == 2
    plain = SegmentorCase(
        'slide', mode='slide', shape=(65, 97),
        configs=('mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py', ))
    model, image = plain.prepare(*plain.candidates())
    assert model.test_cfg == dict(
        mode='slide', crop_size=(769, 769), stride=(513, 513))
    model.test_cfg.update(crop_size=(65, 65), stride=(33, 33))
    slid = plain.run('', (model, image))
    model.test_cfg.mode = 'whole'
    whole = plain.run('', (model, image))
    assert slid.shape == whole.shape == (1, 19, 65, 97)
    assert not torch.equal(slid, whole) and not slid.requires_grad


def test_peak_memory_is_what_a_pass_holds(progress):
    record, = measure([Holding('held')], 1, 1 << 40, progress, times=False)
    once, twice = record['candidates'].values()
    assert 'forward' not in once
    show([record])
    for found, size in ((once, 1 << 26), (twice, 1 << 27)):
        for kind in ('forward_bytes', 'both_bytes'):
            assert 0.95 * size < found[kind] < 1.2 * size


def test_what_does_not_fit_is_left_out_by_name(progress):
    record, = measure([Holding('held')], 1, 1 << 26, progress, memory=False)
    assert 'median' in record['candidates']['once']['forward']
    assert record['candidates']['twice'] == dict(
        skipped='would need more than 0 GiB')
    assert 'would need' in show([record])


def test_the_reference_of_a_large_case_is_left_out():
    case = AttentionCase.parse('gt:P2-P3', (800, 1344))
    # 67,200 x 16,800 scores of 4 parts, twice
    assert case.least_bytes('reference') == 2 * 4 * 67200 * 16800 * 4
    assert case.least_bytes('fpt_plugin') == 0


def test_level_sizes_round_up():
    assert [level_size((800, 1333), level) for level in (2, 3, 4, 5)
            ] == [(200, 334), (100, 167), (50, 84), (25, 42)]


@pytest.mark.parametrize('flags, words', [
    (['attention', '--cases', 'st:P3-P4'], "--cases must .* 'st:P3-P4'"),
    (['attention', '--cases', 'lt:P3'], "--cases must have the form st:P4"),
    (['local-attention', '--cases', '97'], "--cases must .* '97'"),
    (['attention', '--repeats', '0'], '--repeats must be at least 1, got 0'),
    (['lambda', '--cases', '50x84'], "--cases must .* 50x84x64 .* '50x84'"),
    (['lambda', '--cases', '50x0x64'], '--cases must have the form'),
    (['lambda', '--window', '4'], '--window must be odd, got 4'),
    (['lambda', '--heads', '0'], '--heads must be at least 1, got 0'),
    (['backbone', '--cases', '18'], "--cases must be 50, 101 or 152.* '18'"),
    (['neck', '--batch', '-1'], '--batch must be at least 1, got -1'),
])
def test_bad_flags(flags, words):
    with pytest.raises(ValueError, match=words):
        cases_of(parser().parse_args(flags))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is one')
def test_no_cuda_device():
    with pytest.raises(ValueError, match='needs a CUDA device'):
        cases_of(parser().parse_args(['attention', '--device', 'cuda']))


def test_defaults_are_the_sizes_of_the_documentation():
    attention = cases_of(parser().parse_args(['attention']))
    assert attention[3] == AttentionCase(
        'gt:P3-P4', branch='gt', queries=(100, 168), keys=(50, 84))
    local = cases_of(parser().parse_args(['local-attention']))
    assert LocalCase('97x97', fine=(97, 97), coarse=(97, 97)) in local
    c4, c5, *_ = cases_of(parser().parse_args(['lambda']))
    assert c4 == LambdaCase('50x84x64', size=(50, 84), channels=64)
    assert c5 == LambdaCase('25x42x128', size=(25, 42), channels=128)
    detector, segmentor = cases_of(parser().parse_args(['backbone']))
    assert detector == BackboneCase('50', shape=(800, 1344))
    assert segmentor == BackboneCase('50-d8', dilated=True, shape=(512, 1024))
    neck, = cases_of(parser().parse_args(['neck']))
    assert neck == NeckCase('default preset', shape=(800, 1344))


def test_paths_of_attention(tmp_path):
    for flags in (('attention', '--cases', 'st:P4', '--shape', 65, 96),
                  ('local-attention', '--cases', '9x8', '--window', 3)):
        out = bench(*flags, '--paths', '--channels', 16, '--repeats', 1,
                    '--no-memory', '--out', tmp_path / 'a.json')
        record, = json.loads(out.read_text())['records']
        assert {'fpt_plugin', 'chunked', 'eager'} <= set(record['candidates'])
        assert max(c['error'] for c in record['candidates'].values()) < 1e-5


def test_the_plot_reads_former_names_of_the_keys(tmp_path):
    measured = dict(both=dict(median=1.), both_bytes=1)
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(
        surroundings=dict(device='a CPU', threads=2),
        records=[dict(case='st:P4', contestants=dict(fpt_plugin=measured))])))
    (case, ), where = bars([str(path)])
    assert where['device'] == 'a CPU'
    assert case['candidates'] == dict(fpt_plugin=measured)


def test_the_plot_of_the_published_results(tmp_path, capsys):
    flags = [str(path) for path in sorted((ROOT / 'benchmarks').glob(
        '*attention-cpu-float32.json'))]
    picture = plot_benchmark.main(plot_benchmark.parser().parse_args(
        [*flags, '--out', str(tmp_path / 'plot.png')]))
    assert len(flags) == 2 and str(picture) in capsys.readouterr().out
    height, width = cv2.imread(str(picture)).shape[:2]
    assert width > height > 500


def test_a_failure_of_the_command_is_a_line():
    result = subprocess.run([
        sys.executable,
        str(ROOT / 'tools/benchmark.py'), 'attention', '--cases', 'x'
    ], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith('benchmark failed: --cases must be')
