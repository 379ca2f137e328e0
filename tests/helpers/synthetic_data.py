"""Small data that several tests write: wheels, images, COCO folders."""

import hashlib
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np

from fpt_plugin.commands.quickstart.packages import Package


def write_wheel(folder, members):
    """Write a wheel, where ``Package.fetch`` finds it; return its package.

    ``members`` holds bytes by their names in the wheel.
    """
    path = Path(folder) / 'synthetic-0.0.0-py3-none-any.whl'
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Package(
        requirement='synthetic==0.0.0', wheel=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        content='synthetic content', source='a test', licence='none')


def voc_xml(boxes):
    """Return a Pascal VOC annotation, which counts pixels from 1.

    Boxes are x0, y0, x1, y1 in pixels counted from 0, ends exclusive.
    """
    objects = ''.join(
        f'<object><name>Tree</name><bndbox><xmin>{x0 + 1}</xmin>'
        f'<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>'
        '</object>' for x0, y0, x1, y1 in boxes)
    return f'<annotation>{objects}</annotation>'.encode()


def write_coco_squares(root, count=4, size=64):
    """Write ``images/`` with one bright square each, and ``annotations.json``."""
    root = Path(root)
    (root / 'images').mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, annotations, side = [], [], size // 2
    for i in range(1, count + 1):
        image = generator.integers(0, 60, (size, size, 3), dtype=np.uint8)
        # On a coarse grid, like anchors, so that a small detector can find them.
        x, y = (int(v) * size // 4 for v in generator.integers(0, 3, 2))
        image[y:y + side, x:x + side] += 150
        name = f'{i:03d}.png'
        assert cv2.imwrite(str(root / 'images' / name), image), name
        images.append(dict(id=i, file_name=name, height=size, width=size))
        annotations.append(dict(
            id=i, image_id=i, category_id=1, bbox=[x, y, side, side], area=side * side,
            iscrowd=0))
    (root / 'annotations.json').write_text(json.dumps(dict(
        images=images, annotations=annotations,
        categories=[dict(id=1, name='square')])))


def draw_noise(path, height, width, channels=3, most=255):
    """Write an image of noise, the same for all paths of one length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3)[:2 + (channels == 3)]
    pixels = np.random.default_rng(len(str(path))).integers(
        0, most, shape, np.uint8, endpoint=True)
    assert cv2.imwrite(str(path), pixels)


def write_camvid(root):
    """Write noise in CamVid's layout: four images for training, one of val."""
    for part, names in (('train', ('0006R0_1', '0016E5_1', '0001TP_1', '0001TP_2')),
                        ('val', ('0016E5_2', ))):
        for name in names:
            draw_noise(root / part / f'{name}.png', 360, 480)
            draw_noise(root / f'{part}annot' / f'{name}.png', 360, 480, 1, most=11)


def write_boxes(path, names, classes, height, width):
    """Write a COCO file with one box of each class in each image."""
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
    """Write four images each of train and val in the layout of BCCD."""
    for part in ('train', 'val'):
        names = [f'{part}{i}.jpg' for i in range(4)]
        for name in names:
            draw_noise(root / 'JPEGImages' / name, 480, 640)
        write_boxes(root / 'annotations' / f'{part}.json', names,
                    ('Platelets', 'RBC', 'WBC'), 480, 640)
