"""A miniature data set with Cityscapes' layout and label numbers.

Streets with a sky, cars and persons as polygons, a group of cars, and a number plate
and a border, which are ignored. The scripts of Cityscapes and the converters of mmdet
and mmseg make the other files from the polygons.
"""

import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import json2labelImg

HEIGHT, WIDTH = 128, 256
# By split: city, sequence, frame.
IMAGES = dict(
    train=[('aachen', 0, 19), ('aachen', 1, 19), ('bochum', 0, 313),
           ('bochum', 0, 600), ('zurich', 121, 19), ('zurich', 14, 19)],
    val=[('frankfurt', 0, 294), ('frankfurt', 1, 538), ('lindau', 0, 19)],
    test=[('berlin', 0, 19)])
LOOKS = {  # BGR
    'road': (110, 70, 110), 'sky': (200, 160, 90), 'building': (60, 60, 70),
    'car': (220, 60, 30), 'person': (40, 40, 230), 'cargroup': (220, 60, 30),
    'license plate': (240, 240, 240), 'out of roi': (0, 0, 0)}


def stem(city, sequence, frame):
    """Return Cityscapes' name of an image, without its suffix."""
    return f'{city}/{city}_{sequence:06d}_{frame:06d}'


def converter(host):
    """Return the functions of a library's converter for Cityscapes."""
    folder = Path(find_spec(host).origin).parent
    return runpy.run_path(
        str(folder / '.mim/tools/dataset_converters/cityscapes.py'))


def write_cityscapes_tree(root, instances=False):
    """Write ``leftImg8bit`` and ``gtFine``; with ``instances`` also COCO files."""
    root = Path(root)
    to_train_ids = converter('mmseg')['convert_json_to_label']
    for split, names in IMAGES.items():
        for i, name in enumerate(names):
            image, labels = (root / part / split / stem(*name)
                             for part in ('leftImg8bit', 'gtFine'))
            for path in (image, labels):
                path.parent.mkdir(parents=True, exist_ok=True)
            objects = _scene(np.random.default_rng(1000 * len(split) + i))
            if split == 'test':  # Cityscapes does not publish these labels
                objects = [('out of roi', _box(0, 0, WIDTH, HEIGHT))]
            _write(f'{image}_leftImg8bit.png', _paint(objects))
            polygons = f'{labels}_gtFine_polygons.json'
            Path(polygons).write_text(json.dumps(dict(
                imgHeight=HEIGHT, imgWidth=WIDTH,
                objects=[dict(label=label, polygon=p) for label, p in objects])))
            json2labelImg(polygons, f'{labels}_gtFine_labelIds.png', 'ids')
            annotation = Annotation()
            annotation.fromJsonFile(polygons)
            # The script returns 32 bits, which a PNG cannot hold.
            _write(f'{labels}_gtFine_instanceIds.png', np.array(
                createInstanceImage(annotation, 'ids')).astype(np.uint16))
            to_train_ids(polygons)
    if instances:
        _write_instances(root, converter('mmdet'))


def _write_instances(root, mmdet):
    (root / 'annotations').mkdir()
    for split in ('train', 'val'):
        files = mmdet['collect_files'](
            str(root / 'leftImg8bit' / split), str(root / 'gtFine' / split))
        mmdet['cvt_annotations'](
            mmdet['collect_annotations'](sorted(files)),
            str(root / f'annotations/instancesonly_filtered_gtFine_{split}.json'))


def _box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _scene(generator):
    """Return labels and polygons, from back to front."""
    horizon = int(generator.integers(40, 56))
    left = int(generator.integers(0, 60))
    objects = [('sky', _box(0, 0, WIDTH, horizon)),
               ('road', _box(0, horizon, WIDTH, HEIGHT)),
               ('building', _box(left, 12, left + 70, horizon))]
    # Each third of the width has at most one car, so that none hides another.
    for third in generator.permutation(3)[:2]:
        x = int(third * 85 + generator.integers(4, 14))
        y = int(generator.integers(horizon + 4, horizon + 20))
        width, height = (int(v) for v in generator.integers((44, 24), (64, 40)))
        objects.append(('car', [
            [x, y + height // 2], [x + width // 4, y], [x + 3 * width // 4, y],
            [x + width, y + height // 2], [x + width, y + height], [x, y + height]]))
        if third == 1:
            plate = _box(x + 20, y + height - 6, x + 28, y + height - 3)
            objects.append(('license plate', plate))
    x, y = (int(v) for v in generator.integers((4, 62), (220, 76)))
    objects.append(('person', _box(x, y, x + 18, y + 46)))
    if generator.random() < 0.5:
        objects.append(('cargroup', _box(190, horizon - 8, 240, horizon + 6)))
    return objects + [('out of roi', _box(0, HEIGHT - 6, WIDTH, HEIGHT))]


def _paint(objects):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for label, polygon in objects:
        cv2.fillPoly(image, [np.array(polygon)], LOOKS[label])
    noise = np.random.default_rng(0).integers(0, 16, image.shape, np.uint8)
    return cv2.add(image, noise)


def _write(path, pixels):
    assert cv2.imwrite(path, pixels), path
