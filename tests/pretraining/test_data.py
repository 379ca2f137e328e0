"""Folders of images, and the transforms of their pipelines."""

from __future__ import annotations

import mmcv
import numpy as np
import pytest

from fpt_plugin import PackImage, RandomResizedCrop, UnlabelledImages


def save(*paths):
    for path in paths:
        mmcv.imwrite(np.zeros((4, 4, 3), np.uint8), str(path))


def names(folder, **settings):
    dataset = UnlabelledImages(str(folder), **settings)
    return [dataset[i]['img_path'][len(str(folder)) + 1:]
            for i in range(len(dataset))]


def test_lists_a_folder(tmp_path):
    save(tmp_path / 'b.png', tmp_path / 'a.JPG', tmp_path / 'x/y/c.tif',
         tmp_path / '.hidden.png', tmp_path / '.cache/d.png')
    (tmp_path / 'notes.txt').write_text('')
    (tmp_path / 'folder.png').mkdir()
    assert names(tmp_path) == ['a.JPG', 'b.png', 'x/y/c.tif']
    assert names(tmp_path, recursive=False) == ['a.JPG', 'b.png']
    assert names(tmp_path, suffixes=['.TIF']) == ['x/y/c.tif']
    assert names(tmp_path, indices=1) == ['a.JPG']
    assert names(tmp_path, data_prefix=dict(img_path='x')) == ['x/y/c.tif']


def test_follows_links_once(tmp_path):
    save(tmp_path / 'far/a.png')
    (tmp_path / 'near').mkdir()
    (tmp_path / 'near/link').symlink_to(tmp_path / 'far')
    (tmp_path / 'far/loop').symlink_to(tmp_path / 'near')
    assert names(tmp_path / 'near') == ['link/a.png']
    # A folder has its own path, whatever the names of the links to it.
    (tmp_path / 'a').symlink_to(tmp_path / 'far')
    (tmp_path / 'z').symlink_to(tmp_path / 'far')
    assert names(tmp_path) == ['far/a.png']


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match='data_root must be .*nowhere'):
        UnlabelledImages(str(tmp_path / 'nowhere'))
    with pytest.raises(ValueError, match='data_root must hold images'):
        UnlabelledImages(str(tmp_path))
    save(tmp_path / 'x/a.png')
    with pytest.raises(ValueError, match='recursive=True'):
        UnlabelledImages(str(tmp_path), recursive=False)
    with pytest.raises(FileNotFoundError, match=r'a\.png, which is no folder'):
        UnlabelledImages(str(tmp_path / 'x/a.png'))


@pytest.mark.parametrize('settings, error, text', [
    (dict(ann_file='train.json'), ValueError, "ann_file must not .*'train.json'"),
    (dict(filter_cfg=dict(min_size=32)), ValueError, 'filter_cfg must not'),
    (dict(data_prefix=dict(img='train')), ValueError, "only the key 'img_path', got"),
    (dict(suffixes='.png'), TypeError, "suffixes must be a list .*'.png'"),
])
def test_arguments_for_annotations_are_refused(tmp_path, settings, error, text):
    save(tmp_path / 'a.png')
    with pytest.raises(error, match=text):
        UnlabelledImages(str(tmp_path), **settings)


@pytest.mark.parametrize('shape', [(50, 80, 3), (80, 33, 3), (64, 64), (32, 900, 1)])
def test_crops_are_inside_the_image(shape):
    rows, columns = np.indices(shape[:2])
    image = np.stack([rows, columns], axis=-1)[..., :1 if shape[2:] == (1, ) else 2]
    np.random.seed(0)
    crop = RandomResizedCrop((24, 40), area=(0.2, 0.5), interpolation='nearest')
    areas = []
    for _ in range(50):
        out = crop(dict(img=image.astype(np.float32)))
        assert out['img'].shape == (24, 40, image.shape[2])
        assert out['img_shape'] == (24, 40)
        top, left, height, width = crop._part(*shape[:2])
        assert 0 <= top and 0 <= left
        assert top + height <= shape[0] and left + width <= shape[1]
        areas.append(height * width / shape[0] / shape[1])
        assert 0.7 < width / height < 1.42
    if max(shape[:2]) < 100:
        assert min(areas) > 0.15 and max(areas) < 0.55 and np.std(areas) > 0.05


def test_a_crop_of_the_whole_image():
    image = np.random.default_rng(0).integers(256, size=(48, 48, 3), dtype=np.uint8)
    crop = RandomResizedCrop(48, area=(1, 1), aspect_ratio=(1, 1))
    assert np.array_equal(crop(dict(img=image))['img'], image)


def test_a_crop_has_at_least_one_column():
    crop = RandomResizedCrop(8, aspect_ratio=(1e-3, 2e-3), min_side=1)
    assert crop(dict(img=np.zeros((3, 3, 3), np.uint8)))['img'].shape == (8, 8, 3)


def test_pack_image():
    image = np.random.rand(4, 6, 3)[:, ::-1]
    inputs = PackImage()(dict(img=image))['inputs']
    assert np.array_equal(inputs.numpy(), image.transpose(2, 0, 1))
    assert PackImage()(dict(img=image[..., 0]))['inputs'].shape == (1, 4, 6)


@pytest.mark.parametrize('settings, error, text', [
    (dict(scale=0), ValueError, 'scale'),
    (dict(scale=(1, 2, 3)), ValueError, 'scale'),
    (dict(scale=2.5), TypeError, 'scale'),
    *((dict(scale=8, area=area), ValueError, 'area')
      for area in ((0, 1), (0.5, 0.2), (0.5, 1.2))),
    (dict(scale=8, area=(0.2, 0.5, 0.7)), ValueError, 'area'),
    *((dict(scale=8, aspect_ratio=ratio), ValueError, 'aspect_ratio')
      for ratio in ((0, 1), (1, float('inf')), (1, 2, 3))),
    (dict(scale=8, interpolation='cubic'), ValueError, "bicubic.*got 'cubic'"),
    (dict(scale=8, min_side=0), ValueError, 'min_side'),
])
def test_bad_crops(settings, error, text):
    with pytest.raises(error, match=text):
        RandomResizedCrop(**settings)
