"""The benchmark of pre-training, at small sizes."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from fpt_plugin.commands.benchmark import pretraining
from fpt_plugin.commands.benchmark.command import cases_of, parser
from fpt_plugin.functional.window_groups import first_fit_decreasing
from fpt_plugin.pretraining.masks import random_units


def test_steps_and_packing(bench):
    content, text = bench('pretraining', '--cases', 'mini-192', '--batch', 1)
    for record in content['records']:
        assert tuple(record['candidates']) == pretraining.CANDIDATES
        for found in record['candidates'].values():
            assert 0 < found['forward']['median'] and 0 < found['both']['median']
        dense, groups, uniform = record['counts'].values()
        for key in ('macs', 'saved_bytes'):
            assert 0 < groups[key] < dense[key] > uniform[key] > 0
    found, = content['packing']
    first, exact = found['methods'].values()
    assert 0 < found['least'] <= exact['groups'] < found['windows']
    assert found['least'] <= first['groups'] < found['windows']
    assert found['plan_seconds'] > first['seconds'] > 0
    assert '| Swin-mini 192 | GreenMIM uniform |' in text
    assert text.count('(1.00x)') == 4  # GMACs, two times, bytes
    assert text.count('| Swin-mini 192 |') == 4
    content, text = bench('pretraining', '--cases', 'mini-192', '--batch', 1,
                          '--limit-gib', 0.02)
    candidates = content['records'][0]['candidates']
    assert 'would need' in candidates['SimMIM']['skipped']
    assert 'both' in candidates['GreenMIM groups']
    assert 'skipped: would need' in text


@pytest.mark.parametrize('dtype', ['float64', 'bfloat16'])
@pytest.mark.parametrize('candidate', pretraining.CANDIDATES)
def test_every_parameter_gets_a_gradient(candidate, dtype):
    case, = cases_of(parser().parse_args([
        'pretraining', '--cases', 'mini-64', '--batch', '1', '--dtype', dtype]))
    state = case.prepare(candidate)
    case.run(candidate, state).backward()
    assert all(leaf.grad is not None for leaf in case.leaves(state))


def test_the_knapsack_fills_each_group_optimally():
    rng = random.Random(0)
    for _ in range(60):
        size = rng.randint(3, 20)
        counts = [rng.randint(1, size) for _ in range(rng.randint(1, 9))]
        groups = pretraining.knapsack(counts, size)
        left = list(range(len(counts)))
        for group in range(max(groups) + 1):
            members = [i for i in left if groups[i] == group]
            best = max(total for chosen in product((0, 1), repeat=len(left))
                       if (total := sum(counts[i] for i, c in zip(left, chosen)
                                        if c)) <= size)
            assert sum(counts[i] for i in members) == best
            left = [i for i in left if i not in members]
        assert not left


def test_packings_are_those_of_a_step(monkeypatch):
    """The model groups the same tokens, windows and shifts."""
    model = pretraining.build('mini', 'GreenMIM groups')
    visible = random_units(1, 36, 9)[0]
    grouped = []
    monkeypatch.setattr(
        'fpt_plugin.pretraining.swin.group_windows',
        lambda coords, window, shift, device, real=pretraining.group_windows: (
            grouped.append((coords, window, shift)),
            real(coords, window, shift, device))[1])
    mask = torch.ones(36, dtype=torch.bool)
    mask[visible] = False
    with torch.no_grad():
        model.encode(torch.zeros(1, 3, 192, 192), mask.view(6, 6))
    found = list(pretraining.packings(model, 192, visible))
    assert len(found) == len(grouped) == 8
    for packing, (coords, window, shift) in zip(found, grouped):
        assert torch.equal(packing.coords, coords)
        assert (packing.window, packing.shift) == (window, shift)
        assert sum(packing.counts()) == len(coords)
    counts = found[0].counts()
    assert max(first_fit_decreasing(counts, max(counts))) < len(counts)
