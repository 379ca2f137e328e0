"""Crowds, empty images, masks and category numbers of COCO in the shipped data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.miniature_coco import (
    CATEGORY_IDS,
    CLASSES,
    IMAGES,
    shipped,
    write_coco_tree,
)
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """Work in a folder with the data where the shipped configs expect them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('project'))
        write_coco_tree('data/coco')
        yield


def read(split):
    return json.loads(
        Path(f'data/coco/annotations/instances_{split}2017.json').read_text())


def objects_of(annotations, image_id):
    """Return the annotations of an image without crowds."""
    return [one for one in annotations['annotations']
            if one['image_id'] == image_id and not one['iscrowd']]


def unannotated(annotations):
    """Return the id of the image without any annotation."""
    image_id, = {one['id'] for one in annotations['images']
                 } - {one['image_id'] for one in annotations['annotations']}
    return image_id


def dataset(split):
    init_default_scope('mmdet')
    cfg = Config.fromfile(shipped('mask-rcnn'))
    return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def ids_of(data):
    return [data.get_data_info(i)['img_id'] for i in range(len(data))]


def sample_of(data, image_id):
    return data[ids_of(data).index(image_id)]['data_samples']


def test_unannotated_images_are_dropped_in_training_only():
    dropped = unannotated(read('train'))
    assert ids_of(dataset('train')) == [i for i in IMAGES['train2017'] if i != dropped]
    validation = dataset('val')
    assert ids_of(validation) == list(IMAGES['val2017'])
    assert len(sample_of(validation, unannotated(read('val'))).gt_instances) == 0


@pytest.mark.parametrize('image_id', [
    i for i, row in IMAGES['train2017'].items() if row[-1] == 'crowd'])
def test_crowds_are_ignored_in_training(image_id):
    """An image with only a crowd stays, without objects."""
    training = dataset('train')
    info = training.get_data_info(ids_of(training).index(image_id))
    whole = IMAGES['train2017'][image_id][2]
    assert [one['ignore_flag'] for one in info['instances']] == [0] * whole + [1]
    sample = sample_of(training, image_id)
    assert len(sample.gt_instances) == whole
    assert sample.ignored_instances.labels.tolist() == [CLASSES.index('person')]
    assert sample.ignored_instances.masks.areas[0] > 0


def test_masks_and_labels_reach_the_model():
    """Every object is at its place, with both polygons if it has two."""
    truth, training, labels = read('train'), dataset('train'), set()
    for image_id in ids_of(training):
        own = objects_of(truth, image_id)
        if not own:
            continue
        sample = sample_of(training, image_id)
        found = sample.gt_instances
        assert found.labels.tolist() == [
            CATEGORY_IDS.index(one['category_id']) for one in own]
        labels |= set(found.labels.tolist())
        # The shipped pipeline enlarges the images, and mirrors some.
        assert min(sample.scale_factor) > 1
        boxes = np.array([one['bbox'] for one in own])
        boxes[:, 2:] += boxes[:, :2]
        boxes *= np.tile(sample.scale_factor, 2)
        if sample.flip:
            boxes[:, 0::2] = sample.img_shape[1] - boxes[:, 2::-2]
        assert found.bboxes.tensor.numpy() == pytest.approx(boxes, abs=0.01)
        # Masks are resized as bitmaps: their outlines move by whole pixels.
        assert found.masks.get_bboxes('hbox').tensor.numpy() == pytest.approx(
            boxes, abs=1.5 * max(sample.scale_factor))
        areas = found.masks.areas / np.prod(sample.scale_factor)
        assert areas == pytest.approx([one['area'] for one in own], rel=0.05)
    assert labels == {0, 11, 79}
