"""The shipped studies on synthetic files in the layout of their data."""

from __future__ import annotations

import json

import pytest
from helpers.synthetic_data import draw_noise, write_bccd, write_boxes, write_camvid

CONFIG = """
study = dict(rows=dict(
    _delete_=True, fpn=dict(), light=dict(
        model=dict(neck=dict(type='FPT', preset='light')))))
model = dict(backbone=dict(init_cfg=None))
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(indices={train}), **loader)
val_dataloader = dict(dataset=dict(indices={val}), **loader)
train_cfg = dict(max_epochs=1, val_interval=1)
"""


def write_trees(root):
    for part in ('train', 'val'):
        names = [f'{i}.png' for i in range(4)]
        for name in names:
            draw_noise(root / part / name, 400, 400)
        write_boxes(root / 'annotations' / f'{part}.json', names, ('tree', ),
                    400, 400)


@pytest.mark.slow
@pytest.mark.parametrize('name, write, train, val', [
    ('camvid', write_camvid, [0, 1], [0, 1]), ('bccd', write_bccd, [0, 1], [2, 3]),
    ('trees', write_trees, [0, 1], [2, 3])])
def test_trains_and_evaluates(make_study, run, tmp_path, name, write, train, val):
    write(tmp_path / 'data')
    study = make_study(f'{name}.py', CONFIG.format(train=train, val=val), name)
    run(study, '--rows', 'light', '--seeds', 0, '--data-root', tmp_path / 'data')
    found = json.loads((tmp_path / 'results' / name / 'light-0.json').read_text())
    # One validation during training, one at the end.
    assert found['steps'] == 1 and len(found['curve']) == 2
    assert 0 <= found['report'] <= 100 and found['choice'] >= 0
