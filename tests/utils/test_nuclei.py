"""The dataset of nuclei, from a synthetic wheel."""

import io

import cv2
import numpy as np
import pytest
from data_helpers import write_wheel

from fpt_plugin.utils import nuclei
from fpt_plugin.utils.nuclei import CLASSES, IMAGE, MASK, prepare_nuclei, read_mask
from fpt_plugin.utils.packages import Package

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
