"""Palettes: k-means, tokens and back, checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.pixel_gpts import colours, images, pixel_gpt
from mmengine.runner import load_checkpoint

from fpt_plugin.pretraining.palette import Palette, k_means, nearest


def clusters(count=5, each=40):
    """Points around centres that are far apart."""
    generator = torch.Generator().manual_seed(1)
    centres = 40. * torch.arange(count)[:, None] + torch.tensor([0., 5., 10.])
    noise = torch.randn(count, each, 3, generator=generator)
    return centres, (centres[:, None] + noise).flatten(0, 1)


def test_k_means_finds_clusters():
    centres, points = clusters()
    found = k_means(points, 5, seed=3)
    found = found[found[:, 0].argsort()]
    wanted = points.view(5, 40, 3).mean(1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_k_means_is_a_local_minimum():
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) * 255
    found = k_means(points, 7, iterations=1000)
    chosen = torch.cdist(points, found).argmin(1)
    assert torch.equal(chosen, nearest(points, found))
    for i in range(7):
        torch.testing.assert_close(found[i], points[chosen == i].mean(0))
    assert torch.equal(found, k_means(points, 7, iterations=1000))
    assert not torch.equal(found, k_means(points, 7, seed=1, iterations=1000))


def test_nearest_in_chunks(monkeypatch):
    points, centres = torch.rand(100, 3), torch.rand(9, 3)
    wanted = torch.cdist(points.double(), centres.double()).argmin(1)
    monkeypatch.setattr('fpt_plugin.pretraining.palette.CHUNK', 7)
    assert torch.equal(nearest(points, centres), wanted)


def test_fewer_colours_than_centres():
    palette = Palette(5)
    palette.fit(torch.tensor([[0., 0., 0.], [200., 10., 10.]]).repeat(4, 1))
    assert palette.fitted and len(palette.colours.unique(dim=0)) == 2
    x = torch.tensor([200., 10., 10.]).view(1, 3, 1, 1)
    assert palette.round_trip_error(x) == 0


def test_round_trip():
    palette = Palette(6, colours())
    x = images()
    tokens = palette.tokens(x)
    assert tokens.shape == (2, 5, 4)
    back = palette.images(tokens)
    assert back.shape == x.shape
    for image, colour in zip(x.movedim(1, 3).reshape(-1, 3),
                             back.movedim(1, 3).reshape(-1, 3)):
        distances = (colours() - image).norm(dim=1)
        assert (colour - image).norm() == pytest.approx(distances.min().item())
    error = palette.round_trip_error(x)
    assert error == pytest.approx((back - x).square().mean().sqrt().item())
    assert 0.5 < error < 1.5  # the noise has deviation 1
    assert torch.equal(palette.tokens(back), tokens)
    assert palette.round_trip_error(back) == 0


def test_tokens_do_not_depend_on_autocast():
    """In bfloat16 neighbours among 512 colours would be confused."""
    palette = Palette(512)
    palette.fit(255 * torch.rand(4000, 3))
    luma = palette.colours @ torch.tensor([0.114, 0.587, 0.299])
    assert (luma.diff() >= 0).all()  # dark colours come first
    x = palette.colours.T.reshape(1, 3, 16, 32).clone()
    with torch.autocast('cpu', torch.bfloat16):
        tokens = palette.tokens(x)
    assert torch.equal(tokens.flatten(), torch.arange(512))
    assert torch.equal(palette.tokens(x.double()), tokens)


def test_a_file_of_colours(tmp_path):
    np.save(tmp_path / 'palette.npy', colours().numpy())
    palette = Palette(6, str(tmp_path / 'palette.npy'))
    assert torch.equal(palette.colours, colours()) and palette.fitted
    assert torch.equal(Palette(6, colours().tolist()).colours, colours())
    with pytest.raises(FileNotFoundError, match=r'palette must be .*nowhere\.npy'):
        Palette(6, tmp_path / 'nowhere.npy')


def test_a_checkpoint_brings_the_palette(tmp_path):
    model = pixel_gpt()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    empty = pixel_gpt(palette=None)
    assert not empty.palette.fitted
    load_checkpoint(empty, str(tmp_path / 'model.pth'), map_location='cpu')
    assert empty.palette.fitted
    assert torch.equal(empty.palette.colours, colours())
    assert torch.equal(empty(images()), model(images()))
    # A checkpoint from before the palette was found.
    other = pixel_gpt()
    other.load_state_dict(pixel_gpt(palette=None).state_dict())
    assert not other.palette.fitted
    with pytest.raises(ValueError, match='checkpoint has 6 colours, .* model 9'):
        load_checkpoint(pixel_gpt(colours=9, palette=colours(9)),
                        str(tmp_path / 'model.pth'), map_location='cpu')


def test_an_empty_palette_is_named():
    for use in (lambda p: p.tokens(images()), lambda p: p.images(torch.zeros(1, 2, 2)),
                lambda p: p.round_trip_error(images())):
        with pytest.raises(ValueError, match='its 6 colours: FitPaletteHook finds'):
            use(Palette(6))


@pytest.mark.parametrize('make, error, text', [
    (lambda: Palette(1), ValueError, 'colours must be at least 2, got 1'),
    (lambda: Palette(6.), TypeError, 'colours'),
    (lambda: Palette(6, colours(5)), ValueError, r'\(6, 3\), got \(5, 3\)'),
    (lambda: Palette(6, colours() - 30), ValueError, r'0\.\.255, got values from -30'),
    (lambda: Palette(6, colours() * torch.nan), ValueError, r'0\.\.255'),
    (lambda: Palette(6).fit(torch.rand(5, 3)), ValueError, '6 colours .* got 5'),
])
def test_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()
