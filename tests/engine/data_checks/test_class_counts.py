"""Heads must have the number of classes of the data."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from fpt_plugin.commands.common import load_model
from fpt_plugin.engine.data_checks import check_model_classes

DETECTORS = ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
             'retinanet/retinanet_r50_fpn_1x_coco.py',
             'faster_rcnn/faster-rcnn_r50_fpn_fcos-rpn_1x_coco.py',
             'htc/htc_r50_fpn_1x_coco.py', 'scnet/scnet_r50_fpn_1x_coco.py',
             'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
             'rpn/rpn_r50_fpn_1x_coco.py')
SEGMENTORS = ('fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
              'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
              'stdc/stdc1_4xb12-80k_cityscapes-512x1024.py')
ABC = ('a', 'b', 'c')


def load(name):
    with torch.device('meta'):
        return load_model(name)


def classes(cfg, names, splits=('train', 'val', 'test')):
    for split in splits:
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.metainfo = dict(classes=names)


@pytest.mark.parametrize('name', [f'mmdet::{n}' for n in DETECTORS] +
                         [f'mmseg::{n}' for n in SEGMENTORS])
def test_configs_of_the_libraries_pass(name):
    model, cfg = load(name)
    check_model_classes(model, cfg, 'train', 'val', 'test')


@pytest.mark.parametrize('count', [2, 79, 81])
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_detectors(split, count):
    model, cfg = load('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    classes(cfg, tuple(map(str, range(count))), [split])
    with pytest.raises(ValueError) as error:
        check_model_classes(model, cfg, 'train', 'val', 'test')
    message = str(error.value)
    assert f'{split}_dataloader.dataset' in message
    assert f'{count} classes' in message and 'num_classes=80' in message
    assert 'roi_head.bbox_head' in message and 'rpn' not in message


@pytest.mark.parametrize('names, head', [
    (('road', 'sidewalk'), 'decode_head'), (('road', ), 'decode_head'),
    (None, 'auxiliary_head')])
def test_segmentors(names, head):
    model, cfg = load(f'mmseg::{SEGMENTORS[0]}')
    if names:
        classes(cfg, names)
    else:
        model.auxiliary_head.num_classes = 5
    with pytest.raises(ValueError, match=f'{head} .FCNHead. has num_classes='):
        check_model_classes(model, cfg, 'train')


def model_with(name, num_classes, **settings):
    model = part = nn.Module()
    for child in name.split('.'):
        setattr(part, child, nn.Module())
        part = getattr(part, child)
    for key, value in dict(settings, num_classes=num_classes).items():
        setattr(part, key, value)
    return model


def config(scope, kind, names=None):
    dataset = dict(type=kind, **(dict(metainfo=dict(classes=names)) if names else {}))
    return Config(dict(default_scope=scope, train_dataloader=dict(dataset=dataset)))


COCO = config('mmdet', 'CocoDataset', ABC)


@pytest.mark.parametrize('cfg, model, words', [
    *((config('mmseg', 'BaseSegDataset', ABC[:count]),
       model_with('decode_head', num_classes, out_channels=1), words)
      for num_classes in (1, 2)
      for count, words in ((1, None), (2, None), (3, '3 classes'))),
    # MOT's files list 13 classes, one of which is tracked.
    (config('mmdet', 'MOTChallengeDataset'), model_with('bbox_head', 1), None),
    *((COCO, model_with(name, 5), 'num_classes=5')
      for name in ('bbox_head', 'decode_head', 'roi_head.mask_head')),
    # A user's head of another name may have another task.
    *((COCO, model_with(name, 5), None)
      for name in ('colour_head', 'roi_head.colour_head', 'auxiliary_head')),
])
def test_other_heads_and_datasets(cfg, model, words):
    if words is None:
        check_model_classes(model, cfg, 'train')
    else:
        with pytest.raises(ValueError, match=words):
            check_model_classes(model, cfg, 'train')


def test_heads_that_compare_with_texts():
    model = model_with('bbox_head', 80)
    with pytest.raises(ValueError, match='num_classes=80'):
        check_model_classes(model, COCO, 'train')
    model.language_model = nn.Identity()
    check_model_classes(model, COCO, 'train')
