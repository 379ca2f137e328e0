"""Pixels of an image are found again in what the network gets."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers.shipped_configs import build, load
from mmengine.config import Config

from fpt_plugin.commands.visualize_attention.network_input import (
    NetworkView,
    closest_view,
    grid_points,
    network_views,
    read_image,
    test_pipeline,
)

test_pipeline.__test__ = False  # a function of the package
DETECTOR = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
SEGMENTOR = 'quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py'
SIZE = (90, 140)  # height and width
SPOT = (101, 37)  # x and y of its middle


class Preprocessor(torch.nn.Module):
    """Stands for a library's: it pads below and to the right."""

    def __init__(self, divisor=32):
        super().__init__()
        self.divisor = divisor

    def forward(self, data, training):
        assert not training
        x, = data['inputs']
        height, width = (-side % self.divisor for side in x.shape[1:])
        return dict(inputs=torch.nn.functional.pad(
            x.float(), (0, width, 0, height))[None])


class Model(torch.nn.Module):

    def __init__(self, **test_cfg):
        super().__init__()
        self.backbone = torch.nn.Identity()
        self.data_preprocessor = Preprocessor()
        self.test_cfg = test_cfg


@pytest.fixture
def image(tmp_path):
    """Black but for a spot of 5x5 pixels."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    x, y = SPOT
    pixels[y - 2:y + 3, x - 2:x + 3] = 255
    path = tmp_path / 'spot.png'
    cv2.imwrite(str(path), pixels)
    return path


def config(*transforms, library='mmdet'):
    pack = 'PackDetInputs' if library == 'mmdet' else 'PackSegInputs'
    pipeline = [dict(type='LoadImageFromFile'), *transforms, dict(type=pack)]
    return Config(dict(
        default_scope=library,
        test_dataloader=dict(dataset=dict(pipeline=pipeline))))


def spot(view):
    """Row and column of the middle of the light in a view, in pixels."""
    light = view.inputs[0, 0].double()
    rows, columns = (torch.arange(n) + 0.5 for n in light.shape)
    return [float((light.sum(dim) * places).sum() / light.sum())
            for dim, places in ((1, rows), (0, columns))]


def assert_found(views, tolerance=1.0):
    """The spot's pixel and the light are at one place."""
    view = views[closest_view(views, SPOT)]
    size = tuple(view.inputs.shape[2:])
    for found, light in zip(view.cell(SPOT, size), spot(view)):
        assert abs(found + 0.5 - light) <= tolerance
    x0, y0, x1, y1 = view.box()
    for middle, low, high, side, light in zip(
            SPOT, (x0, y0), (x1, y1), reversed(size), reversed(spot(view))):
        assert abs((middle + 0.5 - low) / (high - low) - light / side) < 0.01


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('transforms', [
    [],
    [dict(type='Resize', scale=(300, 200), keep_ratio=True)],
    [dict(type='Resize', scale=(90, 200), keep_ratio=False)],
    [dict(type='Resize', scale=(250, 160), keep_ratio=True),
     dict(type='Resize', scale_factor=0.5)],
    [dict(type='Pad', size=(400, 333))],
    [dict(type='Resize', scale=(200, 200), keep_ratio=True),
     dict(type='Pad', size_divisor=128)],
    [dict(type='RandomFlip', prob=1.0),
     dict(type='Resize', scale=(200, 200), keep_ratio=True)],
    [dict(type='LoadAnnotations')],
])
def test_pixels_are_found_again(image, library, transforms):
    assert_found(network_views(Model(), config(*transforms, library=library), image))


def test_nothing_is_needed_of_what_is_packed(image):
    cfg = config(dict(type='Resize', scale=(300, 200), keep_ratio=True))
    cfg.test_dataloader.dataset.pipeline[-1].meta_keys = ()
    assert_found(network_views(Model(), cfg, image))


@pytest.mark.parametrize('wrap', [
    lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
    lambda dataset: dict(type='ConcatDataset', datasets=[dataset, dataset]),
])
def test_wrapped_datasets(image, wrap):
    cfg = config(dict(type='Resize', scale=(300, 200), keep_ratio=True))
    cfg.test_dataloader = dict(dataset=wrap(cfg.test_dataloader.dataset))
    assert_found(network_views(Model(), cfg, image))
    cfg.test_dataloader = [cfg.test_dataloader]
    assert_found(network_views(Model(), cfg, image))


@pytest.mark.parametrize('crop, stride, number', [
    ((64, 64), (40, 40), 15),
    ((48, 96), (32, 64), 12),
    ((300, 300), (200, 200), 1),
])
def test_crops_are_those_of_the_segmentor(image, crop, stride, number):
    cfg = load(SEGMENTOR)
    cfg.model.test_cfg = dict(mode='slide', crop_size=crop, stride=stride)
    cfg.test_dataloader.dataset.pipeline[1].scale = (200, 160)
    model = build(cfg).eval()
    views = network_views(model, cfg, image)
    seen = []

    def note(inputs, metas):
        seen.append(inputs)
        return inputs.new_zeros(1, model.out_channels, *inputs.shape[2:])

    model.encode_decode = note
    whole = torch.zeros(1, 3, *(
        max(view.offset[i] + view.inputs.shape[3 - i] for view in views)
        for i in (1, 0)))
    for view in views:
        x, y = view.offset
        height, width = view.inputs.shape[2:]
        whole[:, :, y:y + height, x:x + width] = view.inputs
    model.slide_inference(whole, [dict()])
    assert len(seen) == len(views) == number
    for theirs, view in zip(seen, views):
        assert torch.equal(theirs, view.inputs)
    # Normalised black is negative: the spot is what is above it.
    lit = [NetworkView(v.inputs - v.inputs.min(), v.scale, v.offset)
           for v in views]
    assert_found(lit)


def test_shipped_configs_prepare_an_image(image):
    for name in (DETECTOR, SEGMENTOR):
        cfg = load(name)
        view, = network_views(build(cfg), cfg, image)
        assert view.inputs.shape[1] == 3 and max(view.inputs.shape) == 512
        assert view.scale == pytest.approx([512 / 140] * 2, rel=0.01)


def test_cells():
    view = NetworkView(torch.zeros(1, 3, 64, 96), (2.0, 1.0))
    assert view.cell((0, 0), (16, 24)) == (0, 0)
    assert view.cell((47, 63), (16, 24)) == (15, 23)
    assert view.cell((10, 4), (16, 24)) == (1, 5)
    assert view.cell((47, 63), (1, 1)) == (0, 0)
    assert view.box() == (0, 0, 48, 64)


def test_the_crop_around_a_pixel_is_taken():
    views = [NetworkView(torch.zeros(1, 3, 64, 64), (1., 1.), (x, 0))
             for x in (0, 40, 80)]
    assert [closest_view(views, (x, 5)) for x in (0, 51, 53, 70, 140)] == [
        0, 0, 1, 1, 2]


def test_grid():
    image = np.zeros((60, 90, 3), np.uint8)
    assert grid_points(1, image) == [(45, 30)]
    assert grid_points(3, image) == [(x, y) for y in (10, 30, 50)
                                     for x in (15, 45, 75)]


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(ValueError, match='a.png is not an image'):
        read_image(tmp_path / 'a.png')
    with pytest.raises(FileNotFoundError, match='b.png'):
        read_image(tmp_path / 'b.png')
    with pytest.raises(OSError):
        read_image(tmp_path)


def test_pipelines_that_lose_the_image(image):
    cfg = config(dict(type='mmdet.RandomCrop', crop_size=(30, 30)))
    with pytest.raises(ValueError, match='keep the whole image, 140x90'):
        network_views(Model(), cfg, image)
    cfg = config()
    cfg.test_dataloader.dataset.pipeline.pop()
    with pytest.raises(ValueError, match="one tensor of the image as inputs"):
        network_views(Model(), cfg, image)
    with pytest.raises(ValueError, match='must have a test_dataloader'):
        network_views(Model(), Config(dict(default_scope='mmdet')), image)


def test_a_model_without_preprocessor(image):
    model = Model()
    model.data_preprocessor = None
    with pytest.raises(ValueError, match='must have a data_preprocessor'):
        network_views(model, config(), image)
