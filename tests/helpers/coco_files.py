"""Write a COCO file with two classes, and a config of mmdet that reads it."""

import json
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

CLASSES = ('disc', 'square')
SPLITS = ('train', 'val', 'test')


def coco_content(count=3):
    """Return images of 40 x 60 pixels with a disc and a square each."""
    images = [dict(id=i, file_name=f'{i}.png', height=40, width=60)
              for i in range(1, count + 1)]
    annotations = [
        dict(id=2 * image['id'] + kind - 1, image_id=image['id'],
             category_id=kind, bbox=[2, 3, 10, 12], area=120, iscrowd=0,
             segmentation=[[2, 3, 12, 3, 12, 15]])
        for image in images for kind in (1, 2)]
    return dict(
        images=images, annotations=annotations,
        categories=[dict(id=i + 1, name=n) for i, n in enumerate(CLASSES)])


def write_coco(folder, content=None, pictures=True):
    """Write ``a.json`` and its images; return the folder."""
    content = coco_content() if content is None else content
    Path(folder, 'a.json').write_text(json.dumps(content))
    for image in content['images'] if pictures else ():
        if 'file_name' in image:
            cv2.imwrite(str(Path(folder, image['file_name'])),
                        np.zeros((40, 60, 3), np.uint8))
    return folder


def coco_config(folder, classes=CLASSES, **changes):
    """Return the data settings of a config that reads ``a.json`` in every split."""
    path = str(Path(folder, 'a.json'))
    dataset = dict(
        type='CocoDataset', data_root=str(folder), ann_file='a.json',
        data_prefix=dict(img=''), metainfo=dict(classes=classes),
        pipeline=[dict(type='LoadImageFromFile')], **changes)
    metric = dict(type='CocoMetric', ann_file=path)
    return Config(dict(
        default_scope='mmdet',
        **{f'{split}_dataloader': dict(dataset=dict(dataset)) for split in SPLITS},
        val_evaluator=dict(metric), test_evaluator=dict(metric)))
