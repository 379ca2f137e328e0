"""Arrays are loaded like image files, and one model takes both."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS, init_default_scope

import fpt_plugin  # noqa: F401  applies the fix

LOADERS = ('LoadImageFromFile', 'mmdet.LoadImageFromNDArray',
           'mmseg.LoadImageFromNDArray')
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 8, 3), np.uint8)
GREY = COLOUR[..., 0]


def load(image, kind='LoadImageFromFile', **options):
    init_default_scope(kind.partition('.')[0] if '.' in kind else 'mmdet')
    key = 'img_path' if isinstance(image, str) else 'img'
    return TRANSFORMS.build(dict(type=kind, **options))({key: image, 'img_id': 0})


@pytest.fixture
def path(tmp_path):
    name = str(tmp_path / 'image.png')
    cv2.imwrite(name, COLOUR)
    return name


@pytest.mark.parametrize('kind', LOADERS)
def test_loaders_take_paths_and_arrays(path, kind):
    from_file, from_array = load(path, kind), load(COLOUR, kind)
    assert from_file.pop('img_path') == path
    assert from_array.pop('img_path') is None
    for found in (from_file, from_array):
        assert (found.pop('img') == COLOUR).all()
        assert found == dict(img_id=0, img_shape=(6, 8), ori_shape=(6, 8))
    for image in (path, COLOUR):
        assert load(image, kind, to_float32=True)['img'].dtype == np.float32


@pytest.mark.parametrize('kind', LOADERS)
@pytest.mark.parametrize('grey', [GREY, GREY[..., None], GREY.astype(np.int64),
                                  GREY[..., None].astype(np.float32)])
def test_grey_arrays_are_loaded_like_grey_files(tmp_path, kind, grey):
    path = str(tmp_path / 'grey.png')
    cv2.imwrite(path, GREY)
    found = load(grey, kind)['img']
    assert found.shape == (6, 8, 3) and (found == load(path)['img']).all()


@pytest.mark.parametrize('options, images', [
    (dict(color_type='grayscale'), [GREY]),
    *((options, [GREY, COLOUR / 255, GREY.astype(np.uint16) * 257]) for options in (
        dict(color_type='unchanged'), dict(imdecode_backend='tifffile'))),
    (dict(), [RANDOM.normal(size=(6, 8, 12))])])  # a sensor with 12 channels
def test_arrays_that_are_not_changed(options, images):
    for image in images:
        assert load(image, **options)['img'] is image


@pytest.mark.parametrize('kind', LOADERS)
@pytest.mark.parametrize('image', [
    COLOUR.astype(np.uint16) * 257,
    GREY.astype(np.uint16) * 16,
    COLOUR.astype(np.int32) - 128,
    COLOUR > 127,
    COLOUR / 255,
    (COLOUR / 255).astype(np.float32),
    COLOUR / 127.5 - 1,
    COLOUR / 58 - 2,
    COLOUR * 257.,
    np.where(COLOUR > 99, np.nan, COLOUR),
], ids=['uint16', '12 bits', 'signed', 'bool', '0..1', '0..1 float32', '-1..1',
        'normalised', '16 bits as floats', 'nan'])
def test_other_ranges_are_refused(kind, image):
    with pytest.raises(ValueError, match='from 0 to 255.*got an array of '
                       f'{image.dtype} from'):
        load(image, kind)


@pytest.mark.parametrize('image', [
    COLOUR.astype(np.uint16), COLOUR.astype(np.float32), COLOUR * 1.1 - 10,
    np.zeros((6, 8, 3)), np.zeros_like(COLOUR), np.ones_like(COLOUR)])
def test_values_from_0_to_255(image):
    found = load(image)['img']
    assert (found == image).all()
    assert found.dtype == np.uint8 or found.dtype == image.dtype


@pytest.mark.parametrize('shape', [(2, 6, 8, 3), (3, 6, 8), (1, 6, 8), (8, ),
                                   (0, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='shape'):
        load(np.zeros(shape, np.uint8))


def test_subclasses_with_their_own_transform(path):
    class Mine(LoadImageFromFile):
        def transform(self, results):
            return dict(mine=results)

    for given in (dict(img=COLOUR), dict(img_path=path),
                  dict(img=COLOUR, img_path=path)):
        assert Mine()(given)['mine'].keys() == given.keys()
