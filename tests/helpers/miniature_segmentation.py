"""Miniature ADE20K, Pascal VOC and LIP with the original layouts and label numbers.

Each image has a few boxes on a background; each class has its colour.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 96, 128
# Labels in the files. ADE20K counts from 1, and 0 is no class; VOC has a border of 255
# around each object; LIP has arms, 14 left and 15 right.
CLASSES = dict(ade20k=(4, 1, 150, 21), voc=(0, 1, 15, 20), lip=(0, 2, 14, 15))


def _paint(kind, index):
    """Return an image (BGR) and its labels."""
    ground, *classes = CLASSES[kind]
    generator = np.random.default_rng(index)
    labels = np.full((HEIGHT, WIDTH), ground, np.uint8)
    for i, label in enumerate(classes):
        x, y = 4 + 41 * i, int(generator.integers(4, 40))
        width, height = (int(v) for v in generator.integers((24, 30), (36, 50)))
        place = slice(y, y + height), slice(x, x + width)
        labels[place] = label
        if kind == 'voc':
            cv2.rectangle(labels, (x, y), (x + width - 1, y + height - 1), 255)
    if kind == 'ade20k':
        labels[-5:] = 0
    noise = generator.integers(0, 30, (HEIGHT, WIDTH, 3), np.uint8)
    colours = np.random.default_rng(7).integers(40, 226, (256, 3), np.uint8)
    return colours[labels] + noise, labels


def _write(image, labels, image_path, label_path):
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(image_path), image):
        raise OSError(f'cannot write {image_path}')
    picture = Image.fromarray(labels)
    if 'SegmentationClass' in str(label_path):  # VOC has a palette
        picture = picture.convert('P')
        picture.putdata(labels.flatten().tolist())
    picture.save(label_path)


def write_ade20k_tree(root):
    """Write ``images`` and ``annotations`` of both splits."""
    for split, short, count in (('training', 'train', 4), ('validation', 'val', 2)):
        for i in range(1, count + 1):
            name = f'ADE_{short}_{i:08d}'
            _write(*_paint('ade20k', i + len(split)),
                   Path(root, 'images', split, f'{name}.jpg'),
                   Path(root, 'annotations', split, f'{name}.png'))


def write_voc_tree(root):
    """Write VOC2012 with the additional labels of SBD, ``SegmentationClassAug``."""
    names = dict(
        train=['2007_000032', '2007_000039'],
        val=['2007_000033', '2007_000042'],
        aug=['2008_000002', '2008_000007'])
    lists = Path(root, 'ImageSets/Segmentation')
    lists.mkdir(parents=True)
    for split, listed in names.items():
        (lists / f'{split}.txt').write_text(''.join(f'{n}\n' for n in listed))
        folder = f'SegmentationClass{"Aug" if split == "aug" else ""}'
        for name in listed:
            _write(*_paint('voc', int(name[-6:])),
                   Path(root, 'JPEGImages', f'{name}.jpg'),
                   Path(root, folder, f'{name}.png'))


def write_lip_tree(root):
    """Write images and segmentations of both splits."""
    for split, names in (('train', ['77_471474', '90_15221', '1_2']),
                         ('val', ['100034_483681', '5_7'])):
        for name in names:
            _write(*_paint('lip', int(name.split('_')[0])),
                   Path(root, f'{split}_images', f'{name}.jpg'),
                   Path(root, f'{split}_segmentations', f'{name}.png'))
