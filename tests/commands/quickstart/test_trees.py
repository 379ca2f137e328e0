"""The trees dataset, from photographs that a synthetic wheel carries."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
from helpers.synthetic_data import voc_xml, write_wheel
from hypothesis import given
from hypothesis import strategies as st

from fpt_plugin.commands.quickstart import trees
from fpt_plugin.commands.quickstart.packages import Package
from fpt_plugin.commands.quickstart.trees import (
    PHOTOGRAPHS,
    Tile,
    prepare_trees,
    read_voc_boxes,
    tile_boxes,
    tile_grid,
)

# ------------------------------------------------------------------- tiles


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.integers(16, 200))
def test_tiles_cover_the_photograph_once(width, height, size):
    count = np.zeros((height, width), dtype=int)
    for tile in tile_grid(width, height, size):
        assert 0 <= tile.x0 < tile.x1 <= width
        assert 0 <= tile.y0 < tile.y1 <= height
        count[tile.y0:tile.y1, tile.x0:tile.x1] += 1
    assert (count == 1).all()


@given(
    width=st.integers(1, 20000),
    height=st.integers(1, 20000),
    size=st.integers(200, 2000))
def test_tiles_are_about_square_and_alike(width, height, size):
    tiles = tile_grid(width, height, size)
    for length, sides in ((width, [t.x1 - t.x0 for t in tiles]),
                          (height, [t.y1 - t.y0 for t in tiles])):
        assert max(sides) - min(sides) <= 1
        # Rounding the number of tiles keeps a side within these factors; a
        # photograph smaller than that is one tile.
        assert max(sides) <= 1.5 * size + 1
        assert min(sides) >= min(length, size / 1.5 - 1)


def test_tiles_go_row_by_row():
    assert tile_grid(5, 4, size=2) == [
        Tile(0, 0, 2, 2),
        Tile(2, 0, 5, 2),
        Tile(0, 2, 2, 4),
        Tile(2, 2, 5, 4),
    ]


# ------------------------------------------------------------------- boxes


@st.composite
def photographs(draw):
    """Width, height, tile size and boxes of a photograph, in half pixels.

    Halves are exact in floating point, so the centres are exact as well.
    """
    width, height = draw(st.integers(1, 120)), draw(st.integers(1, 120))

    def span(length):
        low = st.integers(0, 2 * length - 1)
        return low.flatmap(
            lambda x: st.tuples(st.just(x), st.integers(x, 2 * length)))

    corners = draw(
        st.lists(st.tuples(span(width), span(height)), max_size=20))
    boxes = [(x0 / 2, y0 / 2, x1 / 2, y1 / 2)
             for (x0, x1), (y0, y1) in corners]
    return width, height, draw(st.integers(8, 60)), boxes


@given(photographs())
def test_each_box_belongs_to_the_tile_of_its_centre(photograph):
    width, height, size, boxes = photograph
    owners = Counter()
    for tile in tile_grid(width, height, size):
        for i, box in enumerate(boxes):
            found = tile_boxes(np.array([box]), tile)
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            holds = tile.x0 <= x < tile.x1 and tile.y0 <= y < tile.y1
            assert len(found) == holds
            owners[i] += len(found)
    assert all(owners[i] == 1 for i in range(len(boxes)))


@given(photographs())
def test_boxes_are_clipped_into_their_tile(photograph):
    width, height, size, boxes = photograph
    boxes = np.array(boxes).reshape(-1, 4)
    for tile in tile_grid(width, height, size):
        found = tile_boxes(boxes, tile)
        assert found.shape[1:] == (4, )
        for x0, y0, x1, y1 in found:
            assert 0 <= x0 <= x1 <= tile.x1 - tile.x0
            assert 0 <= y0 <= y1 <= tile.y1 - tile.y0


@given(photographs())
def test_a_box_with_an_area_keeps_one(photograph):
    width, height, size, boxes = photograph
    boxes = np.array(boxes).reshape(-1, 4)
    solid = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    for tile in tile_grid(width, height, size):
        found = tile_boxes(solid, tile)
        assert (found[:, 2:] > found[:, :2]).all()


def test_boxes_move_with_their_tile():
    boxes = np.array([[8., 20, 14, 24], [0, 0, 4, 4]])
    kept = boxes.copy()
    found = tile_boxes(boxes, Tile(10, 20, 20, 30))
    assert found.tolist() == [[0, 0, 4, 4]]
    assert np.array_equal(boxes, kept)  # another tile reads them, too


def test_no_boxes():
    assert tile_boxes(np.zeros((0, 4)), Tile(0, 0, 9, 9)).shape == (0, 4)


def test_voc_boxes_count_from_one():
    assert read_voc_boxes(voc_xml([(0, 2, 10, 12), (3, 4, 5, 6)])).tolist() \
        == [[0, 2, 10, 12], [3, 4, 5, 6]]
    # As written in the file: pixels 1 to 10, both included, are 10 wide.
    box = (b'<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin>'
           b'<xmax>10</xmax><ymax>5.5</ymax></bndbox></object></annotation>')
    assert read_voc_boxes(box).tolist() == [[0, 0, 10, 5.5]]


def test_voc_without_boxes():
    boxes = read_voc_boxes(b'<annotation></annotation>')
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float64


# ----------------------------------------------------------------- dataset

# Widths and heights: one tile, one smaller one, 3 x 3 tiles, 2 x 2 tiles.
SIZES = dict(zip(PHOTOGRAPHS, [(400, 400), (310, 250), (1190, 1210),
                               (901, 700)]))
# Every fourth tile of the fifteen, counted over all photographs. A change of
# this list makes results incomparable with those of earlier versions.
HELD_OUT = [
    '2019_YELL_2_541000_4977000_image_crop_0397_0000.png',
    '2019_YELL_2_541000_4977000_image_crop_0793_0403.png',
    '2019_YELL_2_528000_4978000_image_crop2_0000_0000.png',
]


def photograph_pixels(name):
    """Pixels that tell where they are: x and y modulo 251, photograph."""
    width, height = SIZES[name]
    y, x = np.indices((height, width))
    which = np.full_like(x, PHOTOGRAPHS.index(name))
    return np.stack([x % 251, y % 251, which], axis=-1).astype(np.uint8)


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
    """The cache folder, with the synthetic wheel in deepforest's place."""

    def no_network(self, folder):
        raise AssertionError('the wheel is there: nothing is to be fetched')

    monkeypatch.setattr(Package, '_download', no_network)
    monkeypatch.setattr(trees, 'DEEPFOREST', wheel[1])
    return wheel[0]


@pytest.fixture(scope='module')
def dataset(wheel, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, 'DEEPFOREST', wheel[1])
        return prepare_trees(
            tmp_path_factory.mktemp('data') / 'trees', wheel[0])


def load(dataset, split):
    return json.loads((dataset / 'annotations' / f'{split}.json').read_text())


def origin(file_name):
    """Photograph and offset (x, y) of a tile, from its name."""
    photograph, x, y = file_name[:-len('.png')].rsplit('_', 2)
    return photograph, int(x), int(y)


def test_layout(dataset):
    assert sorted(p.name for p in dataset.iterdir()) == [
        'annotations', 'train', 'val'
    ]
    assert sorted(p.name for p in dataset.parent.iterdir()) == ['trees']


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pycocotools_reads_it(dataset, split):
    from pycocotools.coco import COCO
    coco = COCO(str(dataset / 'annotations' / f'{split}.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == ['tree']
    content = load(dataset, split)
    assert len(coco.getImgIds()) == len(content['images']) > 0
    assert len(coco.getAnnIds()) == len(content['annotations']) > 0
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert annotation['image_id'] in coco.imgs
        assert annotation['iscrowd'] == 0
        x, y, width, height = annotation['bbox']
        image = coco.imgs[annotation['image_id']]
        assert width > 0 and height > 0
        assert annotation['area'] == width * height
        assert 0 <= x and x + width <= image['width']
        assert 0 <= y and y + height <= image['height']


@pytest.mark.parametrize('split', ['train', 'val'])
def test_ids_are_unique(dataset, split):
    content = load(dataset, split)
    for part in ('images', 'annotations'):
        ids = [item['id'] for item in content[part]]
        assert len(set(ids)) == len(ids)
        # pycocotools takes an id of 0 for "not matched".
        assert min(ids) > 0


def test_source_and_licence_are_written_down(dataset):
    info = load(dataset, 'train')['info']
    assert info['licence'] and info['source']


@pytest.mark.parametrize('split', ['train', 'val'])
def test_images_are_the_photographs_pixels(dataset, split):
    listed = load(dataset, split)['images']
    assert sorted(image['file_name'] for image in listed) == sorted(
        path.name for path in (dataset / split).iterdir())
    for image in listed:
        pixels = cv2.imread(str(dataset / split / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3)
        name, x, y = origin(image['file_name'])
        whole = photograph_pixels(name)
        assert np.array_equal(
            pixels, whole[y:y + image['height'], x:x + image['width']])


def test_every_pixel_is_in_one_split(dataset):
    seen = {name: np.zeros(SIZES[name][::-1], int) for name in PHOTOGRAPHS}
    for split in ('train', 'val'):
        for image in load(dataset, split)['images']:
            name, x, y = origin(image['file_name'])
            seen[name][y:y + image['height'], x:x + image['width']] += 1
    assert all((count == 1).all() for count in seen.values())


def test_every_box_is_annotated_once(dataset):
    """Moved back into its photograph, each annotation is its clipped box."""
    found, tiles = Counter(), []
    for split in ('train', 'val'):
        content = load(dataset, split)
        images = {image['id']: image for image in content['images']}
        for image in images.values():
            name, x, y = origin(image['file_name'])
            tiles.append(
                (name, x, y, x + image['width'], y + image['height']))
        for annotation in content['annotations']:
            name, x, y = origin(images[annotation['image_id']]['file_name'])
            left, top, width, height = annotation['bbox']
            found[name, x + left, y + top, x + left + width,
                  y + top + height] += 1
    expected = Counter()
    for name in PHOTOGRAPHS:
        for x0, y0, x1, y1 in photograph_boxes(name).tolist():
            (_, left, top, right, bottom), = (
                tile for tile in tiles if tile[0] == name
                and tile[1] <= (x0 + x1) / 2 < tile[3]
                and tile[2] <= (y0 + y1) / 2 < tile[4])
            expected[name, max(x0, left), max(y0, top), min(x1, right),
                     min(y1, bottom)] += 1
    assert found == expected
    assert sum(found.values()) == 30 * len(PHOTOGRAPHS)


def test_the_held_out_quarter_is_fixed(dataset):
    held_out = [image['file_name'] for image in load(dataset, 'val')['images']]
    assert held_out == HELD_OUT
    assert len(load(dataset, 'train')['images']) == 12


def test_two_runs_agree(dataset, cache, tmp_path):
    again = prepare_trees(tmp_path / 'again', cache)
    for split in ('train', 'val'):
        assert load(again, split) == load(dataset, split)


def test_a_second_run_reuses_the_first(cache, tmp_path, monkeypatch):
    root = tmp_path / 'trees'
    assert prepare_trees(root, cache) == root
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}

    def fetch(self, folder):
        raise AssertionError('the dataset is there: nothing is to be read')

    monkeypatch.setattr(Package, 'fetch', fetch)
    assert prepare_trees(str(root), cache) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before


@pytest.mark.parametrize('failure', ['full disk', 'interrupt'])
def test_an_interrupted_run_leaves_nothing(cache, tmp_path, monkeypatch,
                                           failure):
    calls = []
    write = cv2.imwrite

    def imwrite(path, image):
        calls.append(path)
        if len(calls) < 3:
            return write(path, image)
        if failure == 'interrupt':
            raise KeyboardInterrupt
        return False  # how OpenCV says that it could not write

    monkeypatch.setattr(trees.cv2, 'imwrite', imwrite)
    root = tmp_path / 'trees'
    with pytest.raises(KeyboardInterrupt if failure ==
                       'interrupt' else OSError):
        prepare_trees(root, cache)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert not root.exists()


def test_a_run_after_an_interrupted_one_is_whole(cache, dataset, tmp_path,
                                                 monkeypatch):
    root = tmp_path / 'trees'
    with monkeypatch.context() as patch:
        patch.setattr(trees.cv2, 'imwrite', lambda *_: False)
        with pytest.raises(OSError, match='disk'):
            prepare_trees(root, cache)
    prepare_trees(root, cache)
    assert load(root, 'val') == load(dataset, 'val')


def test_a_wheel_without_a_photograph(tmp_path, monkeypatch):
    package = write_wheel(tmp_path / 'cache', {'deepforest/data/x.txt': b''})
    monkeypatch.setattr(trees, 'DEEPFOREST', package)
    with pytest.raises(RuntimeError, match=PHOTOGRAPHS[0]):
        prepare_trees(tmp_path / 'trees', tmp_path / 'cache')
    assert [p.name for p in tmp_path.iterdir()] == ['cache']
