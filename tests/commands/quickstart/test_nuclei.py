"""The dataset of nuclei, from a synthetic wheel."""

import io

import cv2
import numpy as np
import pytest
from helpers.synthetic_data import write_wheel

from fpt_plugin.commands.quickstart import nuclei
from fpt_plugin.commands.quickstart.nuclei import (
    CLASSES,
    IMAGE,
    MASK,
    STROMA_IMAGE,
    STROMA_POLYGONS,
    prepare_nuclei,
    prepare_stroma,
    read_mask,
    read_polygons,
)
from fpt_plugin.commands.quickstart.packages import Package

SIDE = 1000


def pixels():
    """Smooth, so that JPEG keeps it, and different everywhere."""
    y, x = np.indices((SIDE, SIDE))
    return np.stack([x // 4, y // 4, (x + y) // 8], -1).astype(np.uint8)


def mask():
    y, x = np.indices((SIDE, SIDE))
    return ((x // 7 + y // 11) % 4).astype(np.int32)


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def members(image=None, labels=None):
    written, jpg = cv2.imencode('.jpg', pixels() if image is None else image,
                                [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert written
    labels = mask() if labels is None else labels
    return {IMAGE: jpg.tobytes(), MASK: archive(nuc_raster=labels)}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a synthetic wheel in the real one's place; nothing is fetched."""

    def no_network(self, folder):
        raise AssertionError('the wheel is there: nothing is to be fetched')

    monkeypatch.setattr(Package, '_download', no_network)

    def write(**kwargs):
        monkeypatch.setattr(nuclei, 'HISTOLYTICS',
                            write_wheel(tmp_path / 'cache', members(**kwargs)))
        return tmp_path / 'cache'

    return write


def test_tiles_are_the_image_and_a_quarter_is_held_out(tmp_path, package):
    root = prepare_nuclei(tmp_path / 'nuclei', package())
    seen = np.zeros((SIDE, SIDE), int)
    whole = cv2.imdecode(
        np.frombuffer(members()[IMAGE], np.uint8), cv2.IMREAD_COLOR)
    counts = {}
    for split in ('train', 'val'):
        images, labels = (sorted((root / kind / split).iterdir())
                          for kind in ('images', 'labels'))
        assert [p.name for p in images] == [p.name for p in labels]
        counts[split] = len(images)
        for image, label in zip(images, labels):
            x, y = map(int, image.stem.split('_'))
            part = cv2.imread(str(image))
            height, width = part.shape[:2]
            inside = slice(y, y + height), slice(x, x + width)
            assert np.array_equal(part, whole[inside])
            assert np.array_equal(
                cv2.imread(str(label), cv2.IMREAD_UNCHANGED), mask()[inside])
            seen[inside] += 1
    assert (seen == 1).all()
    assert counts == dict(train=12, val=4)


def test_the_hosts_dataset_reads_it(tmp_path, package):
    from mmseg.datasets import BaseSegDataset
    root = prepare_nuclei(tmp_path / 'nuclei', package())
    dataset = BaseSegDataset(
        data_root=str(root), img_suffix='.png', seg_map_suffix='.png',
        data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        metainfo=dict(classes=CLASSES), pipeline=[
            dict(type='mmseg.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations')
        ])
    assert len(dataset) == 4
    for sample in dataset:
        assert sample['gt_seg_map'].shape == sample['img'].shape[:2]
        assert set(np.unique(sample['gt_seg_map'])) == {0, 1, 2, 3}


def test_made_once(tmp_path, package, monkeypatch):
    cache = package()
    root = prepare_nuclei(tmp_path / 'nuclei', cache)
    monkeypatch.setattr(nuclei, 'read_member', None)
    assert prepare_nuclei(root, cache) == root


def test_another_folder_is_left_alone(tmp_path, package):
    (tmp_path / 'nuclei' / 'images').mkdir(parents=True)
    with pytest.raises(RuntimeError, match='is not the dataset of nuclei'):
        prepare_nuclei(tmp_path / 'nuclei', package())
    assert [p.name for p in (tmp_path / 'nuclei').iterdir()] == ['images']


@pytest.mark.parametrize('kwargs, words', [
    (dict(labels=mask()[:-1]), r'one size, got \(1000, 1000\) and \(999, 1000\)'),
    (dict(labels=mask() + 1), r'labels from 0 to 3, got .* \[1, 2, 3, 4\]'),
    (dict(labels=mask() - 1), r'labels from 0 to 3'),
])
def test_bad_content_leaves_nothing(tmp_path, package, kwargs, words):
    cache = package(**kwargs)
    with pytest.raises(ValueError, match=words):
        prepare_nuclei(tmp_path / 'nuclei', cache)
    assert not (tmp_path / 'nuclei').exists()


def test_masks_without_their_array():
    with pytest.raises(ValueError, match=r"must hold nuc_raster, got \['a'\]"):
        read_mask(archive(a=mask()))


# ---------------------------------------------------------- the second image


def polygons(names, shapes):
    """A GeoParquet file of shapely's shapes."""
    pyarrow = pytest.importorskip('pyarrow')
    import shapely
    from pyarrow.parquet import write_table
    file = io.BytesIO()
    write_table(
        pyarrow.table(dict(geometry=[shapely.to_wkb(s) for s in shapes],
                           class_name=names)), file)
    return file.getvalue()


def test_polygons_become_class_numbers():
    """Corners count from the corner of the first pixel; a hole stays empty."""
    from shapely.geometry import MultiPolygon, Polygon, box
    ring = Polygon(box(10, 10, 30, 30).exterior, [box(16, 16, 24, 24).exterior])
    pair = MultiPolygon([box(0, 0, 4, 4), box(34, 34, 39, 39)])
    labels = read_polygons(
        polygons(['inflammatory', 'neoplastic'], [ring, pair]), (40, 50))
    assert labels.shape == (40, 50) and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 2, 3}
    assert (labels[1:3, 1:3] == 3).all() and (labels[35:38, 35:38] == 3).all()
    assert (labels[12:28, 11:15] == 2).all() and (labels[18:22, 18:22] == 0).all()
    # Within half a pixel of an edge it is rounded.
    assert abs(int((labels == 2).sum()) - (20 * 20 - 8 * 8)) < 100


@pytest.mark.parametrize('broken, words', [
    ('class', r"class_name must be one of .* got \['unheard-of'\]"),
    ('column', r"must have geometry and class_name, got \['geometry'\]"),
])
def test_bad_polygons(broken, words):
    from shapely.geometry import box
    content = polygons(['unheard-of'], [box(0, 0, 1, 1)])
    if broken == 'column':
        from pyarrow import BufferReader
        from pyarrow.parquet import read_table, write_table
        file = io.BytesIO()
        write_table(read_table(BufferReader(content)).select(['geometry']), file)
        content = file.getvalue()
    with pytest.raises(ValueError, match=words):
        read_polygons(content, (4, 4))


def test_all_tiles_of_the_second_image_are_tested(tmp_path, monkeypatch):
    from shapely.geometry import box
    image = members()[IMAGE]
    wheel = write_wheel(tmp_path / 'cache', {
        STROMA_IMAGE: image,
        STROMA_POLYGONS: polygons(['connective'], [box(260, 10, 300, 60)])
    })
    monkeypatch.setattr(nuclei, 'HISTOLYTICS', wheel)
    root = prepare_stroma(tmp_path / 'stroma', tmp_path / 'cache')
    images, labels = (sorted((root / kind / 'test').iterdir())
                      for kind in ('images', 'labels'))
    assert [p.name for p in images] == [p.name for p in labels]
    assert len(images) == 16
    found = [p.name for p in labels if cv2.imread(str(p), -1).any()]
    assert found == ['0250_0000.png']
    monkeypatch.setattr(nuclei, 'read_member', None)
    assert prepare_stroma(root, tmp_path / 'cache') == root
    (root / 'labels').rename(root / 'other')
    with pytest.raises(RuntimeError, match='is not the second image'):
        prepare_stroma(root, tmp_path / 'cache')
