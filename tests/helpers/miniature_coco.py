"""A miniature data set with COCO's layout and its difficult cases.

Category ids have gaps, image ids are unsorted, some objects have two polygons, crowds
are run lengths, and some images have no annotation or only a crowd.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask

from helpers.shipped_configs import CONFIGS

# COCO numbers its 80 categories from 1 to 90 without these.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORY_IDS = [i for i in range(1, 91) if i not in GAPS]
CLASSES = CocoDataset.METAINFO['classes']

# The painted categories: the first one, the first one after a gap and the last one.
# Each is a polygon with a number of corners and a colour (BGR).
PERSON, STOP_SIGN, TOOTHBRUSH = 1, 13, 90
LOOKS = {PERSON: (24, (60, 60, 250)), STOP_SIGN: (8, (70, 230, 70)),
         TOOTHBRUSH: (4, (250, 120, 50))}

# Image id: height, width, number of whole objects, and the special object.
IMAGES = dict(
    train2017={
        391895: (96, 128, 2, ''),
        522418: (128, 96, 3, ''),
        184613: (96, 128, 2, 'halves'),
        318219: (128, 96, 0, ''),
        554625: (112, 112, 2, 'crowd'),
        574769: (96, 128, 0, 'crowd'),
        60623: (128, 96, 2, ''),
        309022: (100, 150, 3, ''),
        5802: (96, 128, 3, ''),
        222564: (112, 112, 3, ''),
    },
    val2017={
        397133: (96, 128, 3, ''),
        37777: (128, 96, 2, 'halves'),
        252219: (112, 112, 0, ''),
        87038: (128, 96, 2, 'crowd'),
        139: (100, 150, 3, ''),
    })


def file_name(image_id):
    """Return COCO's name of an image, as in 000000000139.jpg."""
    return f'{image_id:012d}.jpg'


def uncompressed_rle(mask):
    """Return the run lengths of a mask, as in a COCO file.

    Runs go column by column and start with background, which may have length 0.
    """
    pixels = mask.flatten(order='F').astype(np.int8)
    ends = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *ends, pixels.size]).tolist()
    if pixels[0]:
        counts.insert(0, 0)
    return dict(counts=counts, size=list(mask.shape))


def compressed_rle(segmentation, height, width):
    """Return one compressed code of polygons or of uncompressed run lengths."""
    rle = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.merge(rle) if isinstance(rle, list) else rle


def shipped(name):
    """Return the path of a detector's shipped config."""
    return str(CONFIGS / f'fpt/{name}_r50_fpt_1x_coco.py')


def evaluate(name, samples):
    """Evaluate predictions by a shipped config, in a folder with ``data/coco``."""
    init_default_scope('mmdet')
    metric = METRICS.build(Config.fromfile(shipped(name)).val_evaluator)
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def write_coco_tree(root):
    """Write ``train2017``, ``val2017`` and ``annotations/instances_*2017.json``.

    The files are the same in every call.
    """
    root = Path(root)
    (root / 'annotations').mkdir(parents=True)
    categories = [dict(supercategory='thing', id=i, name=name)
                  for i, name in zip(CATEGORY_IDS, CLASSES)]
    for split, rows in IMAGES.items():
        (root / split).mkdir()
        images, annotations = [], []
        for image_id, (height, width, count, special) in rows.items():
            generator = np.random.default_rng(image_id)
            image, found = _paint(generator, height, width, count, special)
            path = root / split / file_name(image_id)
            assert cv2.imwrite(str(path), image), path
            images.append(dict(
                license=4, file_name=path.name, height=height, width=width,
                date_captured='2013-11-14 17:02:52', id=image_id))
            for annotation in found:
                # COCO numbers crowds separately, too.
                number = 900100000000 + image_id if annotation[
                    'iscrowd'] else len(annotations) + 1
                annotations.append(dict(annotation, image_id=image_id, id=number))
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(dict(
            info=dict(description='Shapes', version='1.0', year=2017),
            licenses=[dict(id=4, name='Attribution License')],
            images=images, annotations=annotations, categories=categories)))


def _paint(generator, height, width, count, special):
    """Return an image and its annotations, without their ids."""
    image = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
    kinds = [int(kind) for kind in generator.permutation(list(LOOKS))][:count]
    # Each quarter has at most one object, so that none hides another.
    quarters = [(int(i) // 2, int(i) % 2) for i in generator.permutation(4)]
    kinds += [STOP_SIGN] if special == 'halves' else []
    annotations = []
    for i, (kind, (row, column)) in enumerate(zip(kinds, quarters)):
        corners, colour = LOOKS[kind]
        radius = generator.uniform(15, min(height, width) / 4 - 2)
        centre = np.array([(column + 0.5) * width / 2, (row + 0.5) * height / 2])
        angles = np.pi * (2 * np.arange(corners) + 1) / corners + np.pi / 2
        parts = [centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)]
        if i == count:  # two halves, as if a thin object stood in front
            left = centre + radius * np.array([[-1, -1], [-.2, -1], [-.2, 1], [-1, 1]])
            parts = [left, 2 * centre - left]
        polygons = [part.round(2).flatten().tolist() for part in parts]
        rle = compressed_rle(polygons, height, width)
        image[coco_mask.decode(rle) > 0] = colour
        annotations.append(_annotation(kind, polygons, rle, parts))
    if special == 'crowd':
        annotations.append(_paint_crowd(image, [
            slice(i * n // 2 + 4, (i + 1) * n // 2 - 4)
            for i, n in zip(quarters[-1], (height, width))]))
    return image, annotations


def _paint_crowd(image, place):
    """Paint many small persons; return one annotation for all of them."""
    mask = np.zeros(image.shape[:2], bool)
    rows, columns = place
    for row in range(rows.start, rows.stop - 6, 10):
        for column in range(columns.start, columns.stop - 4, 8):
            mask[row:row + 6, column:column + 4] = True
    image[mask] = LOOKS[PERSON][1]
    rle = uncompressed_rle(mask)
    y, x = mask.nonzero()
    corners = np.array([[x.min(), y.min()], [x.max() + 1, y.max() + 1]])
    return _annotation(
        PERSON, rle, compressed_rle(rle, *mask.shape), [corners], iscrowd=1)


def _annotation(kind, segmentation, rle, outlines, iscrowd=0):
    low, high = (f(np.concatenate(outlines), 0) for f in (np.min, np.max))
    return dict(
        category_id=kind, segmentation=segmentation, area=float(coco_mask.area(rle)),
        bbox=[round(float(v), 2) for v in (*low, *(high - low))], iscrowd=iscrowd)
