"""What the shipped configs' data sets and metric make of COCO's layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniature_coco import (
    CATEGORY_IDS,
    CLASSES,
    IMAGES,
    PERSON,
    TOOTHBRUSH,
    compressed_rle,
    evaluate,
    shipped,
    write_coco_tree,
)
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask

TRAIN, VAL = (Path(f'data/coco/annotations/instances_{split}.json')
              for split in IMAGES)


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """A working folder with the data where the shipped configs expect them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('project'))
        write_coco_tree('data/coco')
        yield


# ------------------------------------------------------------------ metric


def perfect(annotations, score=0.9):
    """Predictions that are the annotations, crowds left out."""
    names = {c['id']: c['name'] for c in annotations['categories']}
    samples = []
    for image in annotations['images']:
        own = [
            one for one in annotations['annotations']
            if one['image_id'] == image['id'] and not one['iscrowd']
        ]
        x, y, w, h = torch.tensor([one['bbox'] for one in own]).reshape(-1, 4).T
        size = image['height'], image['width']
        samples.append(
            dict(
                img_id=image['id'],
                ori_shape=size,
                pred_instances=dict(
                    bboxes=torch.stack([x, y, x + w, y + h], 1),
                    scores=torch.full((len(own), ), score),
                    labels=torch.tensor(
                        [CLASSES.index(names[one['category_id']]) for one in own],
                        dtype=torch.long),
                    masks=[
                        compressed_rle(one['segmentation'], *size) for one in own
                    ])))
    return samples


def add(sample, box, label):
    """One more prediction, surer than all others."""
    mask = np.zeros(sample['ori_shape'], np.uint8, order='F')
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    found = sample['pred_instances']
    for key, value in (('bboxes', torch.tensor([box]).float()),
                       ('scores', torch.ones(1)),
                       ('labels', torch.tensor([label]))):
        found[key] = torch.cat([found[key], value])
    found['masks'].append(coco_mask.encode(mask))


def aps(metrics):
    return metrics['coco/bbox_mAP'], metrics['coco/segm_mAP']


def crowd_of(annotations):
    crowd, = (one for one in annotations['annotations'] if one['iscrowd'])
    return crowd


def unannotated(annotations):
    """The id of the image without any annotation."""
    image_id, = {one['id'] for one in annotations['images']
                 } - {one['image_id'] for one in annotations['annotations']}
    return image_id


def test_categories_keep_their_numbers():
    """Known numbers on either side of the gaps reach the results' file."""
    truth = json.loads(VAL.read_text())
    numbers = {c['name']: c['id'] for c in truth['categories']}
    assert (numbers['person'], numbers['fire hydrant'], numbers['stop sign'],
            numbers['book'], numbers['toothbrush']) == (1, 11, 13, 84, 90)
    metric, _ = evaluate('mask-rcnn', perfect(truth), outfile_prefix='results')
    assert metric.cat_ids == CATEGORY_IDS
    wanted = sorted((one['image_id'], one['category_id'])
                    for one in truth['annotations'] if not one['iscrowd'])
    assert len({number for _, number in wanted}) >= 3
    for kind in ('bbox', 'segm'):
        written = json.loads(Path(f'results.{kind}.json').read_text())
        assert wanted == sorted(
            (one['image_id'], one['category_id']) for one in written)


def test_the_truth_is_perfect():
    """In spite of the crowd and of the image without annotations."""
    truth = json.loads(VAL.read_text())
    assert crowd_of(truth) and unannotated(truth)
    samples = perfect(truth)
    assert aps(evaluate('mask-rcnn', samples)[1]) == (1, 1)
    # The check can fail: a mask of one half only.
    halves = next(one for one in truth['annotations']
                  if not one['iscrowd'] and len(one['segmentation']) == 2)
    halves['segmentation'].pop()
    box, segm = aps(evaluate('mask-rcnn', perfect(truth))[1])
    assert box == 1 and segm < 1


@pytest.mark.parametrize(('where', 'category', 'ignored'), [
    ('crowd', PERSON, True),
    ('crowd', TOOTHBRUSH, False),
    ('nothing', PERSON, False),
])
def test_only_a_crowd_of_the_same_category_forgives(where, category, ignored):
    truth = json.loads(VAL.read_text())
    crowd = crowd_of(truth)
    wanted = crowd['image_id'] if where == 'crowd' else unannotated(truth)
    samples = perfect(truth)
    sample, = (one for one in samples if one['img_id'] == wanted)
    # The crowd's first person: a dot at its corner.
    x, y = (int(v) for v in crowd['bbox'][:2])
    add(sample, (x, y, x + 4, y + 6), CATEGORY_IDS.index(category))
    found = aps(evaluate('mask-rcnn', samples)[1])
    if ignored:
        assert found == (1, 1)
    else:
        assert max(found) < 1


def test_the_flag_makes_the_crowd():
    truth = json.loads(VAL.read_text())
    samples = perfect(truth)
    crowd_of(truth)['iscrowd'] = 0
    Path('no-crowd.json').write_text(json.dumps(truth))
    _, metrics = evaluate('mask-rcnn', samples, ann_file='no-crowd.json')
    assert max(aps(metrics)) < 1


# -------------------------------------------------------------------- data


def dataset(split):
    init_default_scope('mmdet')
    cfg = Config.fromfile(shipped('mask-rcnn'))
    return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def sample_of(data, image_id):
    return data[ids_of(data).index(image_id)]['data_samples']


def ids_of(data):
    return [data.get_data_info(i)['img_id'] for i in range(len(data))]


def test_unannotated_images_are_dropped_in_training_only():
    dropped = unannotated(json.loads(TRAIN.read_text()))
    assert ids_of(dataset('train')) == [
        i for i in IMAGES['train2017'] if i != dropped
    ]
    validation = dataset('val')
    assert ids_of(validation) == list(IMAGES['val2017'])
    kept = unannotated(json.loads(VAL.read_text()))
    assert len(sample_of(validation, kept).gt_instances) == 0


@pytest.mark.parametrize('image_id', [
    i for i, row in IMAGES['train2017'].items() if row[-1] == 'crowd'
])
def test_a_crowd_is_ignored_in_training(image_id):
    """An image with nothing but a crowd stays, and has no object."""
    training = dataset('train')
    info = training.get_data_info(ids_of(training).index(image_id))
    whole = IMAGES['train2017'][image_id][2]
    assert [one['ignore_flag'] for one in info['instances']] == [0] * whole + [1]
    sample = sample_of(training, image_id)
    assert len(sample.gt_instances) == whole
    assert sample.ignored_instances.labels.tolist() == [CLASSES.index('person')]
    assert sample.ignored_instances.masks.areas[0] > 0


def test_masks_and_labels_arrive_whole():
    """Every object in its place, that of two polygons with both."""
    truth = json.loads(TRAIN.read_text())
    training = dataset('train')
    labels = set()
    for image in truth['images']:
        own = [
            one for one in truth['annotations']
            if one['image_id'] == image['id'] and not one['iscrowd']
        ]
        if not own:
            continue
        sample = sample_of(training, image['id'])
        found = sample.gt_instances
        assert found.labels.tolist() == [
            CATEGORY_IDS.index(one['category_id']) for one in own
        ]
        labels |= set(found.labels.tolist())
        # The shipped pipeline enlarges the images, and mirrors some.
        assert min(sample.scale_factor) > 1
        boxes = np.array([one['bbox'] for one in own])
        boxes[:, 2:] += boxes[:, :2]
        boxes *= np.tile(sample.scale_factor, 2)
        if sample.flip:
            boxes[:, 0::2] = sample.img_shape[1] - boxes[:, 2::-2]
        assert found.bboxes.tensor.numpy() == pytest.approx(boxes, abs=0.01)
        # Outlines of the bitmaps jump by whole pixels of the photograph.
        assert found.masks.get_bboxes('hbox').tensor.numpy() == pytest.approx(
            boxes, abs=1.5 * max(sample.scale_factor))
        assert found.masks.areas / np.prod(
            sample.scale_factor) == pytest.approx(
                [one['area'] for one in own], rel=0.05)
    assert labels == {0, 11, 79}
