"""A miniature data set in Cityscapes' own layout and with its own numbers.

Streets under a sky, cars and persons as polygons, a group of cars that nobody
told apart, a number plate and a border that do not count. What Cityscapes'
scripts and the hosts' converters make of the polygons, they make here too.
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
    'license plate': (240, 240, 240), 'out of roi': (0, 0, 0)
}


def stem(city, sequence, frame):
    """Cityscapes' name of an image, without what follows it."""
    return f'{city}/{city}_{sequence:06d}_{frame:06d}'


def converter(host):
    """The functions of a host's tools/dataset_converters/cityscapes.py."""
    folder = Path(find_spec(host).origin).parent
    return runpy.run_path(
        str(folder / '.mim/tools/dataset_converters/cityscapes.py'))


def write_cityscapes_tree(root, instances=False):
    """Write images, polygons and all that is made of the polygons.

    Args:
        root: Gets ``leftImg8bit`` and ``gtFine``.
        instances: Whether mmdet's annotations in COCO's format are made, too.
    """
    root = Path(root)
    to_train_ids = converter('mmseg')['convert_json_to_label']
    for split, names in IMAGES.items():
        for i, name in enumerate(names):
            paths = [root / part / split for part in ('leftImg8bit', 'gtFine')]
            image, labels = (path / stem(*name) for path in paths)
            for path in (image, labels):
                path.parent.mkdir(parents=True, exist_ok=True)
            objects = _scene(np.random.default_rng(1000 * len(split) + i))
            if split == 'test':  # kept by Cityscapes' server
                objects = [('out of roi', _box(0, 0, WIDTH, HEIGHT))]
            _write_image(f'{image}_leftImg8bit.png', objects)
            polygons = f'{labels}_gtFine_polygons.json'
            Path(polygons).write_text(
                json.dumps(
                    dict(
                        imgHeight=HEIGHT,
                        imgWidth=WIDTH,
                        objects=[
                            dict(label=label, polygon=polygon)
                            for label, polygon in objects
                        ])))
            json2labelImg(polygons, f'{labels}_gtFine_labelIds.png', 'ids')
            _write_instance_ids(polygons, f'{labels}_gtFine_instanceIds.png')
            to_train_ids(polygons)
    if instances:
        _write_instances(root, converter('mmdet'))


def _write_instance_ids(polygons, path):
    """Numbers of 16 bits, as a PNG holds them; the script asks Pillow for 32."""
    annotation = Annotation()
    annotation.fromJsonFile(polygons)
    ids = np.array(createInstanceImage(annotation, 'ids'))
    if not cv2.imwrite(path, ids.astype(np.uint16)):
        raise OSError(f'cannot write {path}')


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
    """Labels and polygons, the ones behind first."""
    horizon = int(generator.integers(40, 56))
    objects = [('sky', _box(0, 0, WIDTH, horizon)),
               ('road', _box(0, horizon, WIDTH, HEIGHT))]
    left = int(generator.integers(0, 60))
    objects.append(('building', _box(left, 12, left + 70, horizon)))
    # One to a third of the street's width, so that none hides another.
    for third in generator.permutation(3)[:2]:
        x = int(third * 85 + generator.integers(4, 14))
        y = int(generator.integers(horizon + 4, horizon + 20))
        width, height = (int(v) for v in generator.integers((44, 24), (64, 40)))
        car = [[x, y + height // 2], [x + width // 4, y],
               [x + 3 * width // 4, y], [x + width, y + height // 2],
               [x + width, y + height], [x, y + height]]
        objects.append(('car', car))
        if third == 1:
            plate = _box(x + 20, y + height - 6, x + 28, y + height - 3)
            objects.append(('license plate', plate))
    x, y = (int(v) for v in generator.integers((4, 62), (220, 76)))
    objects.append(('person', _box(x, y, x + 18, y + 46)))
    if generator.random() < 0.5:
        objects.append(('cargroup', _box(190, horizon - 8, 240, horizon + 6)))
    return objects + [('out of roi', _box(0, HEIGHT - 6, WIDTH, HEIGHT))]


def _write_image(path, objects):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for label, polygon in objects:
        cv2.fillPoly(image, [np.array(polygon)], LOOKS[label])
    noise = np.random.default_rng(0).integers(0, 16, image.shape, np.uint8)
    if not cv2.imwrite(path, cv2.add(image, noise)):
        raise OSError(f'cannot write {path}')
