"""FPT beside other necks, and its branches beside their formulas."""

from __future__ import annotations

import json

import pytest
import torch

from fpt_plugin.commands.benchmark import alternatives, levels
from fpt_plugin.commands.benchmark.command import cases_of, main, parser


def bench(*flags):
    out = main(parser().parse_args([str(flag) for flag in flags]))
    return json.loads(out.read_text()), out.with_suffix('.md').read_text()


def cells(text):
    """The rows of a Markdown table by their first cell."""
    lines = [line.strip('| ').split(' | ') for line in text.splitlines()
             if line.startswith('| ')]
    return {line[0]: line for line in lines[2:]}


@pytest.fixture
def few_rois(monkeypatch):
    """The box head is the slowest part of a small image."""
    monkeypatch.setattr(
        alternatives.RoICounts, 'of',
        classmethod(lambda cls, model: cls(4, 4, 4, 1)))


def test_alternatives(tmp_path, few_rois):
    rows = ('FPN', 'PAFPN', 'FPT light')
    content, text = bench(
        'alternatives', '--rows', *reversed(rows), '--shape', 64, 64,
        '--repeats', 1, '--no-memory', '--out', tmp_path / 'a.json')
    detector, neck = content['records']
    assert (detector['part'], neck['part']) == ('detector', 'neck')
    for record in (detector, neck):
        assert tuple(record['candidates']) == rows
        for found in record['candidates'].values():
            assert found['forward']['median'] > 0 < found['both']['median']
    counts = content['counts']
    assert counts['FPN']['macs'] < counts['FPT light']['macs']
    assert counts['FPN']['neck_macs'] < counts['PAFPN']['neck_macs']
    assert all(not found['not_counted'] for found in counts.values())
    table = cells(text)
    assert set(table) == set(rows)
    assert '37.4 -> 37.5' in table['PAFPN'][-1]
    assert '(1.00x)' in table['FPN'][2]


@pytest.mark.parametrize('name', ['FPN from P3', 'DyHead over FPN',
                                  'FPT default'])
def test_a_neck_runs_in_the_detector(name, few_rois):
    """All that learns gets a gradient, but for maps that no head reads."""
    case, _ = alternatives.cases(['FPN', name], (64, 64), batch=2)
    state = case.prepare(name)
    outs = case.run(name, state)
    assert len(outs) == 5 + 5 + 2  # scores, boxes, those of the box head
    assert [len(x) for x in outs] == [2] * 10 + [8] * 2
    sum(x.square().mean() for x in outs).backward()
    assert all(p.grad is not None for p in state.model.parameters()
               if p.requires_grad)


@pytest.mark.parametrize('name', alternatives.ALTERNATIVES)
def test_each_neck_gives_the_levels_that_the_table_names(name):
    neck = alternatives.AlternativesCase('neck', part='neck', shape=(128, 192))
    maps = neck.run(name, neck.prepare(name)) if name != 'NASFPN' else \
        _evaluated(neck, name)
    finest = alternatives.ALTERNATIVES[name].finest
    assert [x.shape[2] for x in maps] == [
        max(1, 128 // 2**level) for level in range(finest, finest + 5)]
    strides = alternatives.detector_config(name).model.rpn_head.anchor_generator
    assert strides.strides[0] == 2**finest


def _evaluated(neck, name):
    """Batch norms refuse to train on one pixel."""
    with torch.no_grad():
        return neck.run(name, neck.prepare(name))


def test_a_neck_whose_operators_are_missing_is_skipped_by_name(
        tmp_path, monkeypatch, few_rois):
    from mmdet.models.necks.dyhead import DyDCNv2

    def missing(*args):
        raise RuntimeError('modulated_deform_conv not compiled')

    monkeypatch.setattr(DyDCNv2, 'forward', missing)
    content, text = bench(
        'alternatives', '--rows', 'FPN', 'DyHead over FPN', '--shape', 64, 64,
        '--repeats', 1, '--no-memory', '--out', tmp_path / 'a.json')
    for record in content['records']:
        found = record['candidates']['DyHead over FPN']
        assert 'not compiled' in found['skipped']
    assert 'not compiled' in text and '39.4 -> 43.3' in text


def test_rois_are_random_numbers_where_mmcv_cannot_cut_them_out(few_rois):
    case = alternatives.AlternativesCase(
        'detector', shape=(64, 64), aligned=False)
    assert len(case.run('FPN', case.prepare('FPN'))) == 12
    assert alternatives.roi_align_runs('cpu')


def test_the_baseline_must_be_there():
    with pytest.raises(ValueError, match="--rows must include 'FPN'.*PAFPN"):
        cases_of(parser().parse_args(['alternatives', '--rows', 'PAFPN']))


def test_levels(tmp_path):
    content, text = bench(
        'levels', '--preset', 'light', 'default', '--shape', 64, 96,
        '--repeats', 1, '--no-memory', '--out', tmp_path / 'a.json')
    found = [(r['preset'], r['level'], r['branch']) for r in content['records']]
    assert found == [('light', level, 'ST') for level in (2, 3, 4, 5)] + [
        ('default', level, branch) for level, branches in (
            (2, ['ST']), (3, ['ST', 'GT from P4', 'GT from P5']),
            (4, ['ST', 'GT from P5', 'RT from P3']),
            (5, ['ST', 'RT from P3', 'RT from P4'])) for branch in branches]
    for record in content['records']:
        assert record['candidates']['fpt_plugin']['error'] < 1e-5
    # 16 x 24 queries, 2 x 3 keys, two parts
    assert content['records'][0]['scores'] == 16 * 24 * 2 * 3 * 2
    assert '| default | P3 | **all** |' in text


def test_a_formula_that_needs_too_much_memory_is_skipped(tmp_path):
    content, text = bench(
        'levels', '--preset', 'light', '--shape', 64, 96, '--repeats', 1,
        '--no-memory', '--limit-gib', 1e-5, '--out', tmp_path / 'a.json')
    finest = content['records'][0]['candidates']
    assert 'would need' in finest['formula']['skipped']
    assert 'would need' in cells(text)['light'][-1] or 'would need' in text


@pytest.mark.parametrize('preset', ['full', 'paper'])
def test_formulas_are_the_layers(preset):
    """Outputs and gradients, in float64 and on two images."""
    cases = levels.cases([preset], (96, 160), batch=2, dtype='float64')
    assert len(cases) == 16
    for case in cases[1::3]:
        results = []
        for name in case.candidates():
            state = case.prepare(name)
            out = case.run(name, state)
            results.append([out, *torch.autograd.grad(
                out.square().sum(), case.leaves(state))])
        for ours, formula in zip(*results):
            torch.testing.assert_close(ours, formula, rtol=1e-8, atol=1e-9)
