"""Counted costs of the pre-training configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.shipped_configs import CONFIGS

from fpt_plugin.commands.complexity.command import complexity

RECORD = Path(__file__).parents[2] / 'benchmarks' / 'config-costs.json'
NAMES = ('greenmim_swin-t-p4-w7_8xb256-800e_224',
         'simmim_swin-t-p4-w7_8xb256-800e_224',
         'greenmim_swin-b-p4-w7_8xb256-800e_224')


@pytest.mark.parametrize('name', NAMES)
def test_multiply_adds(name):
    result = complexity(str(CONFIGS / f'pretraining/{name}.py'), (224, 224))
    assert result.complete
    # The number of windows depends on the random masks.
    recorded = json.loads(RECORD.read_text())[f'pretraining/{name}.py']['own']
    assert result.total.macs == pytest.approx(recorded['macs'], rel=0.012)
    backbone, = (part for part in result.parts if part.name == 'backbone')
    assert backbone.macs > 0.7 * result.total.macs
    saved = result.total.saved_bytes
    if 'simmim' not in name and 'swin-t' in name:
        dense = complexity(str(
            CONFIGS / 'pretraining/simmim_swin-t-p4-w7_8xb256-800e_224.py'),
            (224, 224)).total.saved_bytes
        assert saved < 0.3 * dense
