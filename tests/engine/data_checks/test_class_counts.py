"""Heads must count the classes of the data."""

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
def test_the_hosts_own(name):
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


@pytest.mark.parametrize('names', [('road', 'sidewalk'), ('road', )])
def test_segmentors(names):
    model, cfg = load(f'mmseg::{SEGMENTORS[0]}')
    classes(cfg, names)
    with pytest.raises(ValueError, match='decode_head .FCNHead. has num_classes=19'):
        check_model_classes(model, cfg, 'train')


def one_channel(num_classes):
    model = nn.Module()
    model.decode_head = nn.Module()
    model.decode_head.num_classes = num_classes
    model.decode_head.out_channels = 1
    return model


@pytest.mark.parametrize('num_classes', [1, 2])
@pytest.mark.parametrize('names, fits', [(ABC[:1], True), (ABC[:2], True),
                                         (ABC, False)])
def test_a_segmentor_of_one_channel(num_classes, names, fits):
    cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dict(
        type='BaseSegDataset', metainfo=dict(classes=names)))))
    model = one_channel(num_classes)
    if fits:
        check_model_classes(model, cfg, 'train')
    else:
        with pytest.raises(ValueError, match='3 classes'):
            check_model_classes(model, cfg, 'train')


def test_data_that_list_more_than_is_learnt():
    """MOT's files list 13 classes, of which one is tracked."""
    cfg = Config(dict(default_scope='mmdet', val_dataloader=dict(dataset=dict(
        type='MOTChallengeDataset'))))
    model = nn.Module()
    model.bbox_head = nn.Module()
    model.bbox_head.num_classes = 1
    check_model_classes(model, cfg, 'val')


def test_heads_that_compare_with_texts():
    cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dict(
        type='CocoDataset', metainfo=dict(classes=ABC)))))
    model = nn.Module()
    model.bbox_head = nn.Module()
    model.bbox_head.num_classes = 80
    with pytest.raises(ValueError, match='num_classes=80'):
        check_model_classes(model, cfg, 'test')
    model.language_model = nn.Identity()
    check_model_classes(model, cfg, 'test')


@pytest.mark.parametrize('name, judged', [
    ('bbox_head', True), ('decode_head', True), ('roi_head.mask_head', True),
    ('colour_head', False), ('roi_head.colour_head', False),
    ('auxiliary_head', False)])
def test_a_head_of_the_users_may_have_another_task(name, judged):
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dict(
        type='CocoDataset', metainfo=dict(classes=ABC)))))
    model = part = nn.Module()
    for child in name.split('.'):
        setattr(part, child, nn.Module())
        part = getattr(part, child)
    part.num_classes = 5
    if judged:
        with pytest.raises(ValueError, match='num_classes=5'):
            check_model_classes(model, cfg, 'train')
    else:
        check_model_classes(model, cfg, 'train')


def test_an_auxiliary_head_of_mmseg_has_the_task_of_the_data():
    model, cfg = load(f'mmseg::{SEGMENTORS[0]}')
    model.auxiliary_head.num_classes = 5
    with pytest.raises(ValueError, match='auxiliary_head .FCNHead. has num_cl'):
        check_model_classes(model, cfg, 'train')
