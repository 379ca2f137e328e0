"""The shipped studies on synthetic files in the layout of their data."""

from __future__ import annotations

import json

import pytest
from helpers.synthetic_data import draw_noise, write_camvid

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


def write_boxes(path, names, classes, height, width):
    images = [dict(id=i, file_name=name, height=height, width=width)
              for i, name in enumerate(names)]
    boxes = [dict(id=i, image_id=i // len(classes), iscrowd=0, area=6400,
                  category_id=i % len(classes) + 1,
                  bbox=[30 + 90 * (i % len(classes)), 40, 80, 80])
             for i in range(len(classes) * len(images))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(
        images=images, annotations=boxes, categories=[
            dict(id=i + 1, name=name) for i, name in enumerate(classes)])))


def write_bccd(root):
    for part in ('train', 'val'):
        names = [f'{part}{i}.jpg' for i in range(4)]
        for name in names:
            draw_noise(root / 'JPEGImages' / name, 480, 640)
        write_boxes(root / 'annotations' / f'{part}.json', names,
                    ('Platelets', 'RBC', 'WBC'), 480, 640)


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
