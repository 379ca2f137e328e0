"""FPT compared with other necks, and its branches with their formulas."""

from __future__ import annotations

import pytest
import torch

from fpt_plugin.commands.benchmark import alternatives, levels


def cells(text):
    """Return the rows of a Markdown table by their first cell."""
    lines = [line.strip('| ').split(' | ') for line in text.splitlines()
             if line.startswith('| ')]
    return {line[0]: line for line in lines[2:]}


@pytest.fixture
def few_rois(monkeypatch):
    """The box head is the slowest part for a small image."""
    monkeypatch.setattr(
        alternatives.RoICounts, 'of',
        classmethod(lambda cls, model: cls(4, 4, 4, 1)))


def test_alternatives(bench, few_rois, monkeypatch):
    """Candidates with missing operators are skipped."""
    from mmdet.models.necks.dyhead import DyDCNv2

    def missing(*args):
        raise RuntimeError('modulated_deform_conv not compiled')

    monkeypatch.setattr(DyDCNv2, 'forward', missing)
    rows = ('FPN', 'PAFPN', 'DyHead over FPN', 'FPT light')
    content, text = bench(
        'alternatives', '--rows', *reversed(rows), '--shape', 64, 64)
    assert [r['part'] for r in content['records']] == ['detector', 'neck']
    for record in content['records']:
        assert tuple(record['candidates']) == rows
        skipped = record['candidates'].pop('DyHead over FPN')['skipped']
        assert 'not compiled' in skipped
        for found in record['candidates'].values():
            assert found['forward']['median'] > 0 < found['both']['median']
    counts = content['counts']
    assert counts['FPN']['macs'] < counts['FPT light']['macs']
    assert counts['FPN']['neck_macs'] < counts['PAFPN']['neck_macs']
    assert not any(counts[name]['not_counted'] for name in ('FPN', 'FPT light'))
    table = cells(text)
    assert tuple(table)[:4] == rows
    assert '37.4 -> 37.5' in table['PAFPN'][-1] and '(1.00x)' in table['FPN'][2]
    assert 'not compiled' in text and '39.4 -> 43.3' in text


@pytest.mark.parametrize('name', ['FPN from P3', 'DyHead over FPN', 'FPT default'])
@pytest.mark.parametrize('aligned', [True, False])
def test_a_neck_runs_in_the_detector(name, aligned, few_rois):
    """Every trainable parameter gets a gradient."""
    assert alternatives.roi_align_runs('cpu')
    case = alternatives.AlternativesCase(
        'detector', shape=(64, 64), batch=2, aligned=aligned)
    state = case.prepare(name)
    outs = case.run(name, state)
    assert len(outs) == 5 + 5 + 2  # scores, boxes, outputs of the box head
    assert [len(x) for x in outs] == [2] * 10 + [8] * 2
    if aligned:
        sum(x.square().mean() for x in outs).backward()
        assert all(p.grad is not None for p in state.model.parameters()
                   if p.requires_grad)


@pytest.mark.parametrize('name', alternatives.ALTERNATIVES)
def test_each_neck_has_its_levels(name):
    case = alternatives.AlternativesCase('neck', part='neck', shape=(128, 192))
    # NASFPN's batch norms cannot train with one pixel.
    with torch.set_grad_enabled(name != 'NASFPN'):
        maps = case.run(name, case.prepare(name))
    finest = alternatives.ALTERNATIVES[name].finest
    assert [x.shape[2] for x in maps] == [
        max(1, 128 // 2**level) for level in range(finest, finest + 5)]
    strides = alternatives.detector_config(name).model.rpn_head.anchor_generator
    assert strides.strides[0] == 2**finest


def test_levels(bench):
    content, text = bench(
        'levels', '--preset', 'light', 'default', '--shape', 64, 96)
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
    content, text = bench(
        'levels', '--preset', 'light', '--shape', 64, 96, '--limit-gib', 1e-5)
    finest = content['records'][0]['candidates']
    assert 'would need' in finest['formula']['skipped'] and 'would need' in text


@pytest.mark.parametrize('preset', ['full', 'paper'])
def test_formulas_equal_the_layers(preset):
    """Compare outputs and gradients in float64, for two images."""
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
