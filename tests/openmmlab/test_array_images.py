"""Arrays are images like files, and one model takes both."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS, init_default_scope

import fpt_plugin  # noqa: F401  applies the mend

LOADERS = ('LoadImageFromFile', 'mmdet.LoadImageFromNDArray',
           'mmseg.LoadImageFromNDArray')
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 8, 3), np.uint8)
GREY = COLOUR[..., 0]


def loader(kind='LoadImageFromFile', **options):
    init_default_scope(kind.partition('.')[0] if '.' in kind else 'mmdet')
    return TRANSFORMS.build(dict(type=kind, **options))


def load(image, kind='LoadImageFromFile', **options):
    given = dict(img_path=image) if isinstance(image, str) else dict(img=image)
    return loader(kind, **options)(dict(given, img_id=0))


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


@pytest.mark.parametrize('kind', LOADERS)
def test_options_of_a_loader_count(path, kind):
    for image in (path, COLOUR):
        assert load(image, kind, to_float32=True)['img'].dtype == np.float32


@pytest.mark.parametrize('kind', LOADERS)
@pytest.mark.parametrize('grey', [GREY, GREY[..., None], GREY.astype(np.int64),
                                  GREY[..., None].astype(np.float32)])
def test_grey_arrays_are_as_grey_files(tmp_path, kind, grey):
    path = str(tmp_path / 'grey.png')
    cv2.imwrite(path, GREY)
    found = load(grey, kind)['img']
    assert found.shape == (6, 8, 3) and (found == load(path)['img']).all()


@pytest.mark.parametrize('options', [
    dict(color_type='grayscale'), dict(color_type='unchanged'),
    dict(imdecode_backend='tifffile')])
def test_grey_models_get_grey(options):
    assert load(GREY, **options)['img'] is GREY


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
def test_the_usual_range_is_taken(image):
    found = load(image)['img']
    assert (found == image).all()
    assert found.dtype == np.uint8 or found.dtype == image.dtype


@pytest.mark.parametrize('options', [
    dict(color_type='unchanged'), dict(imdecode_backend='tifffile')])
def test_models_of_other_ranges_get_them(options):
    for image in (COLOUR / 255, GREY.astype(np.uint16) * 257):
        assert load(image, **options)['img'] is image


def test_many_channels_are_left_to_the_model():
    image = RANDOM.normal(size=(6, 8, 12))
    assert load(image)['img'] is image


@pytest.mark.parametrize('shape', [(2, 6, 8, 3), (3, 6, 8), (1, 6, 8), (8, ),
                                   (0, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='shape'):
        load(np.zeros(shape, np.uint8))


def test_subclasses_load_by_themselves(path):
    class Mine(LoadImageFromFile):
        def transform(self, results):
            return dict(mine=results)

    for given in (dict(img=COLOUR), dict(img_path=path),
                  dict(img=COLOUR, img_path=path)):
        assert Mine()(given)['mine'].keys() == given.keys()
