"""benchmarks/gpu.sh and ``benchmark gpu``, on a CPU, without mmdet and mmseg."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from math import prod
from pathlib import Path

import pytest
import torch

from fpt_plugin.commands.benchmark import gpu
from fpt_plugin.commands.benchmark.command import cases_of, main, parser
from fpt_plugin.commands.benchmark.largest import LargestImage, image_shape, search
from fpt_plugin.commands.benchmark.measuring import Case, measure
from fpt_plugin.commands.benchmark.networks import NETWORKS, NetworkCase

ROOT = Path(__file__).parents[3]
# The interpreter imports sitecustomize first, which blocks these modules.
WITHOUT_LIBRARIES = '''
import sys


class Missing:

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmdet', 'mmseg') or name in (
                'mmcv.ops', 'mmcv._ext'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Missing())
'''


def run(*flags):
    return gpu.main(parser().parse_args(['gpu', *map(str, flags)]))


@pytest.mark.slow
def test_the_script_on_a_cpu(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(WITHOUT_LIBRARIES)
    out = tmp_path / 'gpu.json'
    result = subprocess.run([
        'bash', str(ROOT / 'benchmarks/gpu.sh'), '--device', 'cpu', '--tiny',
        '--repeats', '1', '--out', str(out)
    ], capture_output=True, text=True, env=dict(
        os.environ, PYTHON=sys.executable, PYTHONPATH=str(tmp_path),
        OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(out.read_text())
    assert content['tests']['failures'] == []
    assert content['tests']['passed'] > 50
    assert content['environment']['torch'] == torch.__version__
    assert [(s['suite'], s['dtype']) for s in content['suites']] == [
        (suite, dtype) for dtype in gpu.DTYPES for suite in gpu.SUITES[:4]]
    for suite in content['suites']:
        for record in suite['records']:
            assert record['dtype'] == suite['dtype']
            for found in record['candidates'].values():
                assert found['forward']['median'] > 0
                assert 'step' in found or found['both']['median'] > 0
    assert [(x['kind'], x['dtype']) for x in content['largest_images']] == [
        (kind, dtype) for dtype in ('bfloat16', 'float32')
        for kind in ('step', 'forward')]
    assert all(x['shape'] for x in content['largest_images'])
    table = out.with_suffix('.md').read_text()
    assert table in result.stdout
    for name in ('chunked', 'fused', 'eager', 'lambda', gpu.LARGEST):
        assert f'| {name} |' in table


def test_suites_of_a_gpu():
    found = gpu.suites('cuda', 'bfloat16', tiny=False)
    names = [case.name for cases in found.values() for case in cases]
    assert len(set(names)) == len(names) == 17
    assert all(case.device == 'cuda' and case.dtype == 'bfloat16'
               for cases in found.values() for case in cases)
    assert found['networks'][0].shape == (800, 1344)
    assert found['networks'][0].candidates() == tuple(NETWORKS)
    assert 'st:P3@4, batch 2, 128 channels' in names
    assert gpu.slug('NVIDIA H100 80GB HBM3') == 'nvidia-h100-80gb-hbm3'


def test_memory_of_a_network_includes_weights_and_momentum():
    case = NetworkCase('small', shape=(32, 32), names=('ResNet-50', ))
    state = case.prepare('ResNet-50')
    parameters = sum(p.nbytes for p in state.network.parameters())
    buffers = sum(b.nbytes for b in state.network.buffers())
    assert case.held_bytes(state) == parameters + buffers
    sum(x.mean() for x in case.run('ResNet-50', state)).backward()
    case.step(state)
    assert case.held_bytes(state) == 2 * parameters + buffers


# --------------------------------------------------------------------- errors


class Fragile(Case):
    """One candidate works, two others fail."""

    def candidates(self):
        return ('works', 'raises', 'too large')

    def prepare(self, candidate):
        return torch.ones(1, requires_grad=True)

    def leaves(self, state):
        return [state]

    def run(self, candidate, state):
        if candidate == 'raises':
            raise RuntimeError('no kernel')
        if candidate == 'too large':
            raise torch.cuda.OutOfMemoryError('out of memory')
        return 2 * state


def test_other_candidates_run_after_a_failure(progress):
    record, = measure([Fragile('a')], 2, 1 << 30, progress, memory=False,
                      keep_going=True)
    found = record['candidates']
    assert found['works']['both']['median'] > 0
    assert found['raises'] == dict(failed='RuntimeError: no kernel')
    assert found['too large'] == dict(skipped='out of memory')
    with pytest.raises(RuntimeError, match='no kernel'):
        measure([Fragile('a')], 2, 1 << 30, progress, memory=False)
    record, = measure([Fragile('a')], 2, 1 << 30, progress, memory=False,
                      deadline=time.monotonic() - 1)
    assert all(found == dict(skipped='no time left')
               for found in record['candidates'].values())


def test_failures_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu, 'suites', lambda *_: {'attention': [Fragile('a')]})
    monkeypatch.setattr(gpu, '_largest', lambda *_: iter(()))
    result = run('--device', 'cpu', '--tiny', '--dtypes', 'float32', '--out',
                 tmp_path / 'a.json')
    assert result.exit_code == 1
    assert result.failed == ('attention a raises', )
    assert 'RuntimeError: no kernel' in capsys.readouterr().out


@pytest.mark.parametrize('flag', ['--repeats', '--minutes'])
def test_bad_flags(flag):
    with pytest.raises(ValueError, match=f'{flag} must be positive, got 0'):
        run('--device', 'cpu', flag, '0')


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a CPU-only machine')
def test_no_cuda_device():
    for call in (run, lambda: cases_of(parser().parse_args(
            ['attention', '--device', 'cuda']))):
        with pytest.raises(ValueError, match='needs a CUDA device'):
            call()


# --------------------------------------------------------------------- search


@pytest.mark.parametrize('largest', [0, 1, 2, 20, 57, 99, 100])
@pytest.mark.parametrize('guess', [1, 20, 60, 100])
def test_search(largest, guess):
    tried = []

    def attempt(steps):
        tried.append(steps)
        return steps <= largest

    fitting, failing = search(attempt, guess, 100, trials=50)
    assert fitting <= largest < failing
    assert failing - fitting <= max(1, 0.03 * fitting + 1)
    assert len(set(tried)) == len(tried)
    if abs(guess - largest) <= 1 and guess > 50:
        assert len(tried) <= 3  # a good guess needs few attempts


def test_the_largest_image_of_a_small_device():
    """The found size fits; the next larger size does not."""
    assert image_shape(25) == (800, 1344)
    case = NetworkCase('R-50', names=('ResNet-50', ))
    finder = LargestImage(case, probes=(1, 2), longest=0.3)
    found = finder.find('forward', 0.9, time.monotonic() + 60)
    assert found['limited_by'] in ('memory', 'time')
    assert found['peak_bytes'] <= found['limit_bytes'] and found['seconds'] > 0
    assert all(side % 32 == 0 for side in found['shape'])
    if found['limited_by'] == 'memory':
        assert prod(found['too_large']) > prod(found['shape'])
    late = finder.find('step', 0.9, time.monotonic() - 1)
    assert late['limited_by'] == 'time' and late['shape'] is None


# ---------------------------------------------------------------------- report


def test_results_of_pytest(tmp_path):
    path = tmp_path / 'tests.xml'
    path.write_text(
        '<testsuites><testsuite>'
        '<testcase classname="a" name="one" time="1.5"/>'
        '<testcase classname="a" name="two" time="0.5"><failure/></testcase>'
        '<testcase classname="a" name="three"><skipped/></testcase>'
        '</testsuite></testsuites>')
    assert gpu.read_tests(path) == dict(
        passed=1, skipped=1, failures=['a::two'], seconds=2.0)
    path.write_text('')
    with pytest.raises(ValueError, match='--tests must be a JUnit XML'):
        gpu.read_tests(path)


def test_the_fastest_path_is_bold(tmp_path, capsys):
    def timed(seconds):
        return dict(forward=dict(median=seconds, spread=0.),
                    both=dict(median=3 * seconds, spread=0.), both_bytes=2**20)

    content = dict(
        command='gpu', tests=None,
        environment=dict(device='a GPU', tf32=dict(matmul=False)),
        suites=[dict(suite='attention', dtype='float32', records=[dict(
            case='st:P4', candidates=dict(
                fpt_plugin=timed(1e-3), chunked=timed(2e-3),
                fused=timed(1.5e-3), eager=dict(skipped='out of memory')))])],
        largest_images=[])
    table = gpu.markdown(content)
    assert '| st:P4 | fused | **1.5** | **4.5** | 1 |  |' in table
    assert '| st:P4 | chunked | 2 | 6 | 1 |  |' in table
    assert '| st:P4 | fpt_plugin | 1 | 3 | 1 |  |' in table
    assert '| st:P4 | eager | out of memory |' in table
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    main(parser().parse_args(['gpu-table', str(path)]))
    assert capsys.readouterr().out == table
    path.write_text(json.dumps(dict(content, command='attention')))
    with pytest.raises(ValueError, match='of benchmark gpu'):
        main(parser().parse_args(['gpu-table', str(path)]))
