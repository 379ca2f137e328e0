"""Broken images and label maps, useless boxes, and classes that do not fit."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import runs
from helpers.square_detector import DETECTOR
from helpers.synthetic_data import write_coco_squares
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fpt_plugin.openmmlab.named_samples import name_broken_samples


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    with runs.inside(tmp_path_factory.mktemp('broken-data')):
        write_coco_squares('data')
        # without validation
        Path('detector.py').write_text(
            DETECTOR + 'val_cfg = val_dataloader = val_evaluator = None')
        yield


# ---------------------------------------------------------------------- files


def empty(path):
    path.write_bytes(b'')


def garble(path):
    path.write_bytes(path.read_bytes()[:20] + bytes(200))


BROKEN = dict(missing=Path.unlink, empty=empty, garbled=garble)


def change(folder, edit):
    """Edit the annotations of a data set in place."""
    path = folder / 'annotations.json'
    coco = json.loads(path.read_text())
    edit(coco)
    path.write_text(json.dumps(coco))


@pytest.fixture
def data(tmp_path):
    """Copy the data; make one image a JPEG."""
    folder = shutil.copytree('data', tmp_path / 'data')
    image = cv2.imread(str(folder / 'images/002.png'))
    cv2.imwrite(str(folder / 'images/002.jpg'), image)
    change(folder, lambda coco: coco['images'][1].update(file_name='002.jpg'))
    return folder


def train_dataset(data):
    init_default_scope('mmdet')
    cfg = Config.fromfile('detector.py').train_dataloader.dataset
    return DATASETS.build(dict(cfg, data_root=str(data)))


@contextlib.contextmanager
def naming(path):
    with pytest.raises(Exception, match=re.escape(path)) as caught:
        yield
    assert isinstance(caught.value, (OSError, RuntimeError, AssertionError))


@pytest.mark.parametrize('damage', BROKEN)
def test_broken_image_is_named(damage, data, tmp_path):
    BROKEN[damage](data / 'images/002.jpg')
    options = [f'{split}_dataloader.dataset.data_root={data}'
               for split in ('train', 'test')]
    with naming(str(data / 'images/002.jpg')):
        runs.train('detector.py', tmp_path / 'run', *options)
    if damage == 'empty':
        torch.save(dict(state_dict={}), tmp_path / 'a.pth')
        with naming(str(data / 'images/002.jpg')):
            runs.run_test('detector.py', tmp_path / 'a.pth', tmp_path / 'run',
                          options=options)


def test_broken_image_is_named_by_workers(data):
    name_broken_samples()
    empty(data / 'images/002.jpg')
    loader = torch.utils.data.DataLoader(
        train_dataset(data), num_workers=1, collate_fn=list)
    with naming(str(data / 'images/002.jpg')):
        list(loader)


@pytest.mark.parametrize('damage', BROKEN)
@pytest.mark.parametrize('kind', ['images', 'labels'])
def test_broken_file_of_a_segmentor_is_named(kind, damage, tmp_path):
    init_default_scope('mmseg')
    name_broken_samples()
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
        picture = np.random.default_rng(0).integers(0, 2, (32, 32), np.uint8)
        cv2.imwrite(str(tmp_path / folder / 'a.png'), picture)
    dataset = DATASETS.build(dict(
        type='mmseg.BaseSegDataset', data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png', seg_map_suffix='.png', metainfo=dict(classes='ab'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]))
    assert dataset[0]['gt_seg_map'].shape == (32, 32)
    path = tmp_path / kind / 'a.png'
    BROKEN[damage](path)
    with naming(str(path)):
        dataset[0]


# ---------------------------------------------------------- boxes and classes

# mmdet skips boxes without pixels.
BOXES = {
    'no width': dict(bbox=[10, 10, 0, 20], area=0),
    'no area': dict(bbox=[10, 10, 20, 20], area=0),
    'negative': dict(bbox=[30, 30, -20, -20], area=400),
    'outside': dict(bbox=[100, 100, 20, 20], area=400),
    'outside, left': dict(bbox=[-50, 10, 20, 20], area=400),
}


def annotate(coco, image_id, *boxes):
    for box in boxes:
        coco['annotations'].append(dict(
            box, id=1000 + len(coco['annotations']), image_id=image_id,
            category_id=1, iscrowd=0))


def test_images_with_only_such_boxes_train(data, tmp_path):
    def edit(coco):
        coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] > 2]
        for image_id in (1, 2):
            annotate(coco, image_id, *BOXES.values())

    change(data, edit)
    losses = runs.logged_losses(runs.train(
        'detector.py', tmp_path / 'run', 'train_cfg.max_epochs=1',
        f'train_dataloader.dataset.data_root={data}'))
    assert len(losses) == 2 and np.isfinite(losses).all()


def classes(*names):
    return [f'{split}_dataloader.dataset.metainfo.classes={names}'
            for split in ('train', 'test')]


@pytest.mark.parametrize('options, words', [
    (classes('circle'), "'circle' of the dataset is no category .*'square'"),
    (classes('disc', 'square'), "'disc' of the dataset is no category"),
    (['model.bbox_head.num_classes=80'], 'bbox_head .*num_classes=80'),
    (['model.bbox_head.num_classes=2'], 'bbox_head .*num_classes=2'),
])
def test_wrong_classes_are_refused_before_a_run(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        runs.train('detector.py', tmp_path / 'run', *options)
    assert not list(tmp_path.glob('run/*/vis_data/*.json'))
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=words):
        runs.run_test('detector.py', tmp_path / 'a.pth', tmp_path / 'test',
                      options=options)
