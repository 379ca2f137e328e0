"""Image pixels have the right coordinates in the network's input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers.attention_models import SEGMENTOR
from helpers.shipped_configs import build, load
from mmengine.config import Config

from fpt_plugin.commands.visualize_attention.network_input import (
    NetworkView,
    closest_view,
    grid_points,
    network_views,
    read_image,
)

SPOT = (101, 37)  # x and y of its centre


class Model(torch.nn.Module):
    """A model whose preprocessor pads at the right and bottom."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Identity()
        self.data_preprocessor = self.pad

    @staticmethod
    def pad(data, training):
        assert not training
        x, = data['inputs']
        height, width = (-side % 32 for side in x.shape[1:])
        return dict(inputs=torch.nn.functional.pad(
            x.float(), (0, width, 0, height))[None])


@pytest.fixture
def image(tmp_path):
    """Black, with a white spot of 5x5 pixels."""
    pixels = np.zeros((90, 140, 3), np.uint8)
    x, y = SPOT
    pixels[y - 2:y + 3, x - 2:x + 3] = 255
    cv2.imwrite(str(tmp_path / 'spot.png'), pixels)
    return tmp_path / 'spot.png'


def config(*transforms, library='mmdet', **pack):
    kind = 'PackDetInputs' if library == 'mmdet' else 'PackSegInputs'
    pipeline = [dict(type='LoadImageFromFile'), *transforms, dict(type=kind, **pack)]
    return Config(dict(
        default_scope=library,
        test_dataloader=dict(dataset=dict(pipeline=pipeline))))


def assert_found(views):
    """The spot's pixel and the light have the same coordinates."""
    view = views[closest_view(views, SPOT)]
    size = tuple(view.inputs.shape[2:])
    light = view.inputs[0, 0].double()
    rows, columns = (torch.arange(n) + 0.5 for n in size)
    centre = [float((light.sum(dim) * places).sum() / light.sum())
              for dim, places in ((1, rows), (0, columns))]
    for cell, place in zip(view.cell(SPOT, size), centre):
        assert abs(cell + 0.5 - place) <= 1
    x0, y0, x1, y1 = view.box()
    for middle, low, high, side, place in zip(
            SPOT, (x0, y0), (x1, y1), reversed(size), reversed(centre)):
        assert abs((middle + 0.5 - low) / (high - low) - place / side) < 0.01


RESIZE = dict(type='Resize', scale=(300, 200), keep_ratio=True)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('transforms', [
    [],
    [dict(RESIZE, scale=(90, 200), keep_ratio=False)],
    [RESIZE, dict(type='Resize', scale_factor=0.5)],
    [dict(type='Pad', size=(400, 333))],
    [RESIZE, dict(type='Pad', size_divisor=128)],
    [dict(type='RandomFlip', prob=1.0), RESIZE],
    [dict(type='LoadAnnotations')],
])
def test_pixels_keep_their_coordinates(image, library, transforms):
    # The packed result may lack the factors of the resizing.
    for pack in ({}, dict(meta_keys=())):
        cfg = config(*transforms, library=library, **pack)
        assert_found(network_views(Model(), cfg, image))
    dataset = cfg.test_dataloader.dataset
    for wrapper in (dict(type='RepeatDataset', times=2, dataset=dataset),
                    dict(type='ConcatDataset', datasets=[dataset, dataset])):
        cfg.test_dataloader = [dict(dataset=wrapper)]
        assert_found(network_views(Model(), cfg, image))


@pytest.mark.parametrize('crop, stride, number', [
    ((64, 64), (40, 40), 15), ((48, 96), (32, 64), 12), ((300, 300), (200, 200), 1)])
def test_crops_are_those_of_the_segmentor(image, crop, stride, number):
    cfg = load(SEGMENTOR)
    cfg.model.test_cfg = dict(mode='slide', crop_size=crop, stride=stride)
    cfg.test_dataloader.dataset.pipeline[1].scale = (200, 160)
    model = build(cfg).eval()
    views = network_views(model, cfg, image)
    crops = []

    def record(inputs, metas):
        crops.append(inputs)
        return inputs.new_zeros(1, model.out_channels, *inputs.shape[2:])

    model.encode_decode = record
    whole = torch.zeros(1, 3, *(
        max(view.offset[i] + view.inputs.shape[3 - i] for view in views)
        for i in (1, 0)))
    for view in views:
        x, y = view.offset
        height, width = view.inputs.shape[2:]
        whole[:, :, y:y + height, x:x + width] = view.inputs
    model.slide_inference(whole, [dict()])
    assert len(crops) == len(views) == number
    assert all(torch.equal(crop, view.inputs) for crop, view in zip(crops, views))
    # Normalised black is negative: subtract it.
    assert_found([NetworkView(v.inputs - v.inputs.min(), v.scale, v.offset)
                  for v in views])


def test_cells_views_and_grids():
    view = NetworkView(torch.zeros(1, 3, 64, 96), (2.0, 1.0))
    assert [view.cell(p, (16, 24)) for p in ((0, 0), (47, 63), (10, 4))] == [
        (0, 0), (15, 23), (1, 5)]
    assert view.cell((47, 63), (1, 1)) == (0, 0)
    assert view.box() == (0, 0, 48, 64)
    views = [NetworkView(torch.zeros(1, 3, 64, 64), (1., 1.), (x, 0))
             for x in (0, 40, 80)]
    assert [closest_view(views, (x, 5)) for x in (0, 51, 53, 70, 140)] == [
        0, 0, 1, 1, 2]
    image = np.zeros((60, 90, 3), np.uint8)
    assert grid_points(1, image) == [(45, 30)]
    assert grid_points(3, image) == [(x, y) for y in (10, 30, 50)
                                     for x in (15, 45, 75)]


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_files_that_are_not_images(tmp_path, content):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(ValueError, match='a.png is not an image'):
        read_image(tmp_path / 'a.png')
    with pytest.raises(FileNotFoundError, match='b.png'):
        read_image(tmp_path / 'b.png')
    with pytest.raises(OSError):
        read_image(tmp_path)


def test_unsuitable_configs_and_models(image):
    unpacked = config()
    unpacked.test_dataloader.dataset.pipeline.pop()
    for cfg, words in (
            (config(dict(type='mmdet.RandomCrop', crop_size=(30, 30))),
             'keep the whole image, 140x90'),
            (unpacked, 'one tensor of the image as inputs'),
            (Config(dict(default_scope='mmdet')), 'must have a test_dataloader')):
        with pytest.raises(ValueError, match=words):
            network_views(Model(), cfg, image)
    model = Model()
    model.data_preprocessor = None
    with pytest.raises(ValueError, match='must have a data_preprocessor'):
        network_views(model, config(), image)
