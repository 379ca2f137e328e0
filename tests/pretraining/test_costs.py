"""What pre-training costs, counted."""

from __future__ import annotations

import pytest
from helpers.shipped_configs import CONFIGS

from fpt_plugin.commands.complexity.command import complexity

# Multiply-adds of an image of 224x224, in 10^9, as in the README.
COSTS = {
    'greenmim_swin-t-p4-w7_8xb256-800e_224': 1.32,
    'simmim_swin-t-p4-w7_8xb256-800e_224': 4.56,
    'greenmim_swin-b-p4-w7_8xb256-800e_224': 3.98,
}


@pytest.mark.parametrize('name', COSTS)
def test_multiply_adds(name):
    result = complexity(str(CONFIGS / f'pretraining/{name}.py'), (224, 224))
    assert result.complete
    # Windows of a few random masks more or less.
    assert result.total.macs / 1e9 == pytest.approx(COSTS[name], abs=0.015)
    backbone, = (part for part in result.parts if part.name == 'backbone')
    assert backbone.macs > 0.7 * result.total.macs
    saved = result.total.saved_bytes
    if 'simmim' not in name and 'swin-t' in name:
        dense = complexity(str(
            CONFIGS / 'pretraining/simmim_swin-t-p4-w7_8xb256-800e_224.py'),
            (224, 224)).total.saved_bytes
        assert saved < 0.3 * dense
