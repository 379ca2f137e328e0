"""Label maps are checked before anything is built."""

import cv2
import numpy as np
import pytest
from helpers.checked_data import expect
from mmengine.config import Config
from PIL import Image

from fpt_plugin.engine.data_checks import inspect_data
from fpt_plugin.engine.data_checks.label_maps import (
    _listed_paths,
    missing_class_message,
)

HEIGHT, WIDTH = 20, 30
GOOD = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3


def tree(folder, *maps, suffix='.png'):
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    for i, labels in enumerate(maps):
        cv2.imwrite(str(folder / f'images/{i}.png'),
                    np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        Image.fromarray(labels).save(folder / f'labels/{i}{suffix}')
    return folder


def config(folder, classes=('a', 'b', 'c'), loading=(), **changes):
    dataset = dict(
        type='BaseSegDataset', data_root=str(folder), img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=classes),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='LoadAnnotations', **dict(loading))])
    dataset.update(changes)
    return Config(dict(default_scope='mmseg',
                       train_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize('labels, words', [
    *((labels, None) for labels in (
        GOOD, GOOD == 1, np.where(GOOD == 2, 255, GOOD).astype(np.uint8),
        GOOD.astype(np.uint16), np.where(GOOD == 2, 65535, GOOD).astype(np.uint16))),
    (np.stack([GOOD] * 3, -1), r'1.png must have one channel.*\(20, 30, 3\)'),
    (np.stack([GOOD] * 4, -1), r'1.png must have one channel.*\(20, 30, 4\)'),
    (np.ascontiguousarray(GOOD[::2, ::2]), r'1.png.* \(10, 15\), of the image \(20'),
    (np.ascontiguousarray(GOOD.T), r'1.png.*\(transposed\)'),
    (GOOD.astype(np.uint16) + 255, '1.png must hold numbers from 0 to 255'),
])
def test_wrong_label_maps_are_named(tmp_path, labels, words):
    cfg = config(tree(tmp_path, GOOD, labels, GOOD))
    expect(words and ValueError, words, cfg)
    assert any(problem.fatal for problem in inspect_data(cfg, 'train')) == bool(words)


def test_a_palette_depends_on_the_loading_backend(tmp_path):
    tree(tmp_path, GOOD)
    image = Image.fromarray(GOOD, 'P')
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / 'labels/0.png')
    expect(None, '', config(tmp_path))
    expect(ValueError, 'one channel',
           config(tmp_path, loading=dict(imdecode_backend='cv2')))


@pytest.mark.parametrize('raw, classes, reduce_zero_label, warned', [
    ((0, 255), ('a', 'b'), False, True),
    ((0, 255), ('a', 'b'), True, True),
    ((0, 1), ('a', 'b'), True, True),
    ((0, 1, 255), ('a', 'b', 'c'), False, True),
    ((0, 1, 255), ('a', 'b'), False, False),
    ((0, 1), ('a', 'b'), False, False),
    ((0, ), ('a', 'b'), False, False),
    ((0, 1, 2), ('a', 'b'), True, False),
    ((0, 1, 7, 255), tuple('abcdefgh'), False, False),
    ((0, 1, 2, 3, 4, 5, 6, 255), tuple('abcdefgh'), False, False),
])
def test_masks_of_0_and_255(tmp_path, raw, classes, reduce_zero_label, warned):
    labels = np.array(raw, np.uint8)[np.arange(HEIGHT * WIDTH) % len(raw)]
    tree(tmp_path, labels.reshape(HEIGHT, WIDTH))
    cfg = config(tmp_path, classes, reduce_zero_label=reduce_zero_label)
    expect(UserWarning if warned else None, 'never occur, while pixels of 255', cfg)


def test_255_and_one_class_of_many():
    assert missing_class_message(set(), True, 19)
    assert missing_class_message({3}, True, 19)
    assert missing_class_message({3, 4}, True, 19) is None
    assert missing_class_message({3}, False, 19) is None


@pytest.mark.parametrize('labels', [np.stack([GOOD] * 3, -1), GOOD[::2, ::2]])
def test_a_users_transforms_may_make_labels_from_any_file(tmp_path, labels):
    tree(tmp_path, labels)
    cfg = config(tmp_path)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline.append(dict(type='Resize', scale=(30, 20)))
    expect(ValueError, r'0\.png', cfg)
    pipeline.append(dict(type=type('ColoursToClasses', (), {})))
    expect(UserWarning, r'0\.png', cfg)


@pytest.mark.parametrize('change, words', [
    (dict(img_suffix='.jpg'), "ends with img_suffix='.jpg'; it has 2 of .png"),
    (dict(data_prefix=dict(img_path='none', seg_map_path='labels')),
     'none, is empty'),
    (dict(ann_file='list.txt'), 'list.txt lists none'),
    ({}, r'1 of 2 label maps are not there.*1\.png'),
    (dict(data_prefix=dict(img_path='images'),  # for prediction
          pipeline=[dict(type='LoadImageFromFile')]), None),
])
def test_missing_files(tmp_path, change, words):
    tree(tmp_path, GOOD, GOOD)
    (tmp_path / 'labels/1.png').rename(tmp_path / 'labels/other.png')
    (tmp_path / 'none').mkdir()
    (tmp_path / 'list.txt').write_text('')
    expect(words and ValueError, words, config(tmp_path, **change))


@pytest.mark.parametrize('ann_file', ['', 'list.txt'])
def test_samples_are_those_of_mmseg(tmp_path, ann_file):
    from mmseg.datasets import BaseSegDataset
    (tmp_path / 'elsewhere').mkdir()
    for name in ('images/b.png', 'images/a/c.png', 'images/a/d/e.png',
                 'images/.hidden.png', 'images/f.jpg', 'elsewhere/g.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    (tmp_path / 'images/link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'list.txt').write_text('b\na/c\n')
    dataset = BaseSegDataset(
        data_root=str(tmp_path), img_suffix='.png', seg_map_suffix='_l.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        ann_file=ann_file, metainfo=dict(classes=('a', 'b')), lazy_init=True)
    expected = [(s['img_path'], s['seg_map_path']) for s in dataset.load_data_list()]
    assert sorted(_listed_paths(dataset)) == sorted(expected)
    assert len(expected) == (2 if ann_file else 4)
