"""GreenMIM and SimMIM: masks, predictions, reconstructions and bad input."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from helpers.learning import descend, without_gradient
from helpers.masked_swins import LIBRARIES, SMALL, green_mim, hide_keys, sim_mim, swin
from mmengine.structures import BaseDataElement
from torch import nn

from fpt_plugin import GreenMIM
from fpt_plugin.pretraining.decoder import GreenMIMDecoder, sine_positions
from fpt_plugin.pretraining.masks import (
    hidden_units,
    one_of_each_cell,
    random_units,
)
from fpt_plugin.pretraining.units import split_units

MODELS = dict(
    groups=green_mim,
    uniform=lambda *args, **kw: green_mim(*args, sampling='uniform', **kw),
    simmim=sim_mim)
models = pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)


def images(height=96, width=128, batch=2, **kwargs):
    return torch.randn(batch, 3, height, width, **kwargs)


def normalised(x, units):
    """Pixels of some units, each with mean 0 and deviation 1."""
    pixels = split_units(x, 32)[:, units].flatten(2)
    return (pixels - pixels.mean(2, keepdim=True)) / (
        pixels.var(2, keepdim=True) + 1e-6).sqrt()


def mask_of(visible, rows, columns):
    mask = torch.ones(rows * columns, dtype=torch.bool)
    mask[visible] = False
    return mask.view(rows, columns)


@models
@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('size, settings', [
    ((64, 64), dict(with_cp=True, drop_path_rate=0.2)),
    ((96, 96), dict(use_abs_pos_embed=True, pretrain_img_size=96)),
    ((96, 160), dict(in_channels=5)),
    ((224, 224), dict(patch_norm=False, qkv_bias=False)), ((64, 96), {})])
def test_every_parameter_gets_a_gradient(make, library, size, settings):
    model = make(swin(library, **settings)).train()
    x = torch.randn(2, settings.get('in_channels', 3), *size)
    loss = model(x, mode='loss')['loss']
    assert loss.isfinite() and loss.dim() == 0
    loss.backward()
    assert without_gradient(model, zero=True) == []
    assert model(x, mode='tensor').shape == x.shape


@models
def test_predictions_do_not_depend_on_hidden_pixels(make):
    model, x = make().eval(), images()
    grid = model.grid_of(x)
    visible = model.draw(len(x), grid)
    hidden = hidden_units(visible, grid[0] * grid[1]).expand(2, -1)
    changed = x.clone()
    for image, numbers in zip(changed, hidden):
        for number in numbers.tolist():
            row, column = divmod(number, grid[1])
            image[:, 32 * row:32 * row + 32, 32 * column:32 * column + 32] = 9.
    assert not torch.equal(x, changed)
    assert torch.equal(model.predict(x, visible, grid),
                       model.predict(changed, visible, grid))
    assert model.loss(x, visible, grid) != model.loss(changed, visible, grid)


@models
def test_images_of_a_batch_do_not_mix(make):
    model, x = make().double().eval(), images(dtype=torch.float64)
    grid = model.grid_of(x)
    visible = model.draw(len(x), grid)
    out = model.predict(x, visible, grid)
    alone = model.predict(x[1:], visible[-1:], grid)
    torch.testing.assert_close(out[1:], alone, rtol=0, atol=1e-12)


def test_groups_equal_the_dense_model_with_hidden_keys():
    """From pixels to the loss, with the library's forward pass as oracle."""
    model, x = green_mim().double(), images(dtype=torch.float64)
    grid = model.grid_of(x)
    visible = model.draw(len(x), grid)
    loss = model.loss(x, visible, grid)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[visible[0]] = True
    hide_keys(model.backbone, mask.view(grid))
    hidden = hidden_units(visible, 12)[0]
    features = model.backbone(x)[0].flatten(2).transpose(1, 2)[:, visible[0]]
    predicted = model.decoder(features, visible[0], hidden, grid)
    expected = (predicted - normalised(x, hidden)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


def test_features_without_a_mask_are_the_librarys():
    model, x = green_mim().double(), images(128, 192, dtype=torch.float64)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    torch.testing.assert_close(
        model.encode(x, mask), model.backbone(x)[0].flatten(2).transpose(1, 2))


@pytest.mark.parametrize('sampling, mask, error, text', [
    ('groups', torch.zeros(3, 4), TypeError, 'mask must be a tensor of bools'),
    ('groups', None, TypeError, 'mask must be a tensor of bools, got NoneType'),
    ('groups', np.ones((3, 4), bool), TypeError, 'tensor of bools, got ndarray'),
    ('groups', mask_of([], 4, 3), ValueError, r'mask must be \(3, 4\)'),
    ('groups', mask_of([], 3, 4), ValueError, 'leave a unit visible'),
    *(('uniform', mask_of(visible, 3, 4), ValueError, 'one unit of each cell')
      for visible in ([0, 3], [0, 2, 8, 10, 11], [0, 1, 8, 10])),
])
def test_bad_masks(sampling, mask, error, text):
    with pytest.raises(error, match=text):
        green_mim(sampling=sampling).encode(images(), mask)


def test_uniform_is_the_librarys_forward_on_a_smaller_image():
    model, x = green_mim(sampling='uniform').double(), images(
        128, 192, dtype=torch.float64)
    visible = model.draw(2, (4, 6))
    units = split_units(x, 32)[:, visible[0]]
    small = units.view(2, 2, 3, 3, 32, 32).permute(0, 3, 1, 4, 2, 5)
    expected = model.backbone(small.reshape(2, 3, 64, 96))[0]
    expected = expected.flatten(2).transpose(1, 2)[:, visible[0].argsort()]
    torch.testing.assert_close(model.encode(x, mask_of(visible[0], 4, 6)), expected)


def test_simmim_is_the_librarys_forward_with_mask_tokens():
    model, x = sim_mim().double(), images(dtype=torch.float64)
    grid = model.grid_of(x)
    visible = model.draw(2, grid)
    hidden = hidden_units(visible, 12)

    def put_tokens(module, args, output):
        tokens, size = output
        rows, columns = size
        tokens = tokens.clone().view(2, *size, -1)
        for image, numbers in enumerate(hidden.tolist()):
            for number in numbers:
                row, column = divmod(number, grid[1])
                tokens[image, 8 * row:8 * row + 8,
                       8 * column:8 * column + 8] = model.mask_token
        return tokens.view(2, rows * columns, -1), size

    expected = model.predict(x, visible, grid)
    model.backbone.patch_embed.register_forward_hook(put_tokens)
    out = model.decoder(model.backbone(x)[0].flatten(2).transpose(1, 2))
    out = torch.stack([row[numbers] for row, numbers in zip(out, hidden)])
    torch.testing.assert_close(expected, out)


@models
def test_a_reconstruction_keeps_visible_pixels(make):
    model, x = make().eval(), images()
    torch.manual_seed(1)
    samples = model(x, mode='predict')
    for sample, image in zip(samples, x):
        assert sample.pred.shape == image.shape
        assert sample.mask.shape == (96, 128) and sample.mask.dtype == torch.bool
        seen = ~sample.mask.expand_as(image)
        assert torch.equal(sample.pred[seen], image[seen])
        assert (sample.pred[~seen] != image[~seen]).all()
    torch.manual_seed(1)
    assert torch.equal(model(x), torch.stack([s.pred for s in samples]))
    given = [BaseDataElement(metainfo=dict(img_path=name)) for name in 'ab']
    assert [s.img_path for s in model(x, given, mode='predict')] == ['a', 'b']
    assert given[1].pred.shape == (3, 96, 128)


def test_a_perfect_prediction_reconstructs_the_image():
    model, x = green_mim(), images()
    grid = model.grid_of(x)
    visible = model.draw(2, grid)
    pixels = normalised(x, hidden_units(visible, 12)[0])
    model.predict = lambda *args: pixels
    torch.testing.assert_close(
        model.reconstruct(x, visible, grid)[0], x, rtol=1e-4, atol=1e-4)
    assert model.loss(x, visible, grid) < 1e-10


@pytest.mark.parametrize('make', [green_mim, sim_mim])
def test_errors_are_those_of_the_hidden_pixels(make):
    """Computed in float64 for each unit from the samples."""
    model, x = make().double(), images().double()
    for image, sample in zip(x, model(x, mode='predict')):
        shown, hidden = [], []
        for row, column in product(range(3), range(4)):
            unit = (..., slice(32 * row, 32 * row + 32),
                    slice(32 * column, 32 * column + 32))
            true, guess = image[unit], sample.pred[unit]
            if make is green_mim:
                mean, scale = true.mean(), (true.var() + 1e-6).sqrt()
                true, guess = (true - mean) / scale, (guess - mean) / scale
            (hidden if sample.mask[unit].all() else shown).append((true, guess))
        colour = torch.stack([true for true, _ in shown]).mean((0, 2, 3))[:, None, None]
        torch.testing.assert_close(sample.error, torch.stack(
            [(true - guess).square().mean() for true, guess in hidden]).mean())
        torch.testing.assert_close(sample.flat_error, torch.stack(
            [(true - colour).square().mean() for true, _ in hidden]).mean())


def test_masks_follow_the_seed_and_the_ratio():
    def draw(seed, count=3):
        torch.manual_seed(seed)
        return [model.draw(2, (7, 7)).tolist() for _ in range(count)]

    model = green_mim()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    first, second, _ = draw(1)
    assert first != second
    assert len(first) == 1  # of a batch
    for ratio, units, visible in ((0.75, 49, 12), (0.9, 10, 1), (0.6, 36, 14),
                                  (0.5, 2, 1)):
        assert green_mim(mask_ratio=ratio).draw(1, (1, units)).shape == (1, visible)


def test_random_units_are_uniform():
    drawn = random_units(2000, 6, 2)
    assert (drawn[:, 0] < drawn[:, 1]).all()
    shares = drawn.flatten().bincount(minlength=6) / 2000
    torch.testing.assert_close(shares, torch.full((6, ), 1 / 3), atol=0.05, rtol=0)
    hidden = hidden_units(drawn, 6)
    assert torch.cat([drawn, hidden], 1).sort(1).values.eq(torch.arange(6)).all()


@pytest.mark.parametrize('grid', [(4, 6), (5, 7), (1, 2), (1, 5)])
def test_one_unit_of_each_cell(grid):
    seen = set()
    for _ in range(60):
        cells = one_of_each_cell(*grid)
        assert cells.shape == ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        for cell, number in zip(
                torch.cartesian_prod(*map(torch.arange, cells.shape)),
                cells.flatten().tolist()):
            assert cell.tolist() == [x // 2 for x in divmod(number, grid[1])]
        seen |= set(cells.flatten().tolist())
    assert seen == set(range(grid[0] * grid[1]))


def test_decoder_depends_on_positions_not_on_order():
    decoder = GreenMIMDecoder(4, 6, **SMALL).double()
    features = torch.randn(2, 3, 4, dtype=torch.float64)
    visible, hidden = torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])
    out = decoder(features, visible, hidden, (2, 3))
    assert out.shape == (2, 3, 6)
    order = torch.tensor([2, 0, 1])  # of the units and their positions
    torch.testing.assert_close(
        decoder(features[:, order], visible[order], hidden, (2, 3)), out)
    assert not torch.allclose(out[:, 0], out[:, 1])
    positions = sine_positions(16, (2, 3), torch.device('cpu'))
    assert len(positions.unique(dim=0)) == 6


def test_smaller_units_and_a_custom_decoder():
    model = GreenMIM(
        swin(depths=(2, 2, 2), num_heads=(1, 2, 2)), decoder=SMALL, mask_unit=16)
    x = images(48, 64)
    assert model(x, mode='tensor').shape == x.shape
    assert model.encode(x, mask_of([1, 5, 6], 3, 4)).shape[:2] == (2, 3)

    class Mean(nn.Linear):

        def __init__(self, in_channels, out_channels, scale):
            super().__init__(in_channels, out_channels)
            self.scale = scale

        def forward(self, features, visible, hidden, grid):
            out = super().forward(features.mean(1, keepdim=True)) * self.scale
            return out.expand(-1, len(hidden), -1)

    model = GreenMIM(swin(), decoder=dict(type=Mean, scale=2.))
    assert model(images(), mode='loss')['loss'].isfinite()


@models
def test_learns(make):
    """Repeated images, whose hidden part follows from the visible one."""
    torch.manual_seed(0)
    model = make()
    x = torch.linspace(-2, 2, 32).expand(2, 3, 32, 32).repeat(1, 1, 3, 4)
    losses = descend(model, lambda: model(x, mode='loss')['loss'], 30, 3e-3)
    assert losses[-1] < 0.5 * losses[0]


@models
@pytest.mark.parametrize('steps', [1, pytest.param(100, marks=pytest.mark.slow)])
def test_bfloat16(make, steps):
    torch.manual_seed(0)
    model, x = make(), images(64, 64, 4)

    def loss():
        with torch.autocast('cpu', torch.bfloat16):
            loss = model(x, mode='loss')['loss']
        assert loss.dtype == torch.float32
        return loss

    losses = descend(model, loss, steps, 1e-3)
    assert without_gradient(model, zero=True) == []
    assert steps == 1 or sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize('sampling, inputs, mode, error, text', [
    ('groups', [torch.rand(3, 64, 64)], 'loss', TypeError, 'ImgDataPreprocessor'),
    ('groups', torch.ones(1, 3, 64, 64).byte(), 'loss', TypeError, 'ImgDataPre'),
    ('groups', images(), 'train', ValueError, 'mode must be'),
    ('groups', images(32, 64), 'loss', ValueError,
     'mask_ratio must leave some of the 2'),
    ('uniform', images(32, 32), 'loss', ValueError, 'more than one unit'),
    *(('groups', torch.rand(shape), 'loss', ValueError, 'mask_unit=32') for shape in (
        (1, 3, 16, 64), (1, 3, 64, 16), (1, 3, 100, 64), (3, 64, 64), (0, 3, 64, 64),
        (1, 4, 64, 64))),
])
def test_bad_inputs(sampling, inputs, mode, error, text):
    with pytest.raises(error, match=text):
        green_mim(sampling=sampling)(inputs, mode=mode)


@pytest.mark.parametrize('settings, error, text', [
    *((dict(mask_ratio=ratio), ValueError, 'mask_ratio')
      for ratio in (0, 1., float('nan'), '0.5')),
    *((dict(mask_unit=unit), ValueError, 'mask_unit') for unit in (48, 16, 0)),
    (dict(mask_unit=32.), TypeError, 'mask_unit'),
    (dict(sampling='blocks'), ValueError, 'sampling'),
    (dict(sampling='uniform', mask_ratio=0.5), ValueError, 'mask_ratio'),
    (dict(decoder=dict(embed_dims=30)), ValueError, 'embed_dims'),
    (dict(decoder=dict(num_heads=0)), ValueError, 'num_heads must be at least 1'),
    (dict(decoder=dict(depth=-1)), ValueError, 'depth must be at least 1'),
])
def test_bad_arguments(settings, error, text):
    with pytest.raises(error, match=text):
        GreenMIM(swin(), **settings)


def test_each_image_has_a_sample():
    with pytest.raises(ValueError, match='data_samples must .* 2 images, got 1'):
        green_mim()(images(), [BaseDataElement()], mode='predict')


@pytest.mark.parametrize('make', [green_mim, sim_mim])
def test_loads_all_weights(make, tmp_path):
    model = make()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    loaded = make(init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    loaded.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize('make', [green_mim, sim_mim])
def test_mask_tokens_are_random_with_any_other_init_cfg(make):
    model = make(init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02))
    model.init_weights()
    token, = (value for key, value in model.state_dict().items() if 'mask_token' in key)
    assert 0.01 < token.std() < 0.03
