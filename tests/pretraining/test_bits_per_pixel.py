"""Bits per pixel, and the counts of colours that they are compared with."""

from __future__ import annotations

from math import log2

import pytest
import torch
from helpers.pixel_gpts import colours

from fpt_plugin import BitsPerPixel
from fpt_plugin.pretraining.context_model import ContextModel


def test_counts_by_hand():
    """Every formula in loops."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, (10, 4, 5), generator=generator)
    model = ContextModel(tokens, 3)
    weak, one, strong = (model.strengths[k] for k in ('unigram', 'one', 'context'))

    def neighbours(image, row, column):
        left = image[row, column - 1].item() if column else 3
        above = image[row - 1, column].item() if row else 3
        return left, above

    places = [(*neighbours(image, r, c), image[r, c].item())
              for image in tokens for r in range(4) for c in range(5)]

    def share(prior, strength, colour, fits):
        seen = [x[2] == colour for x in places if fits(x)]
        return (sum(seen) + strength * prior) / (len(seen) + strength)

    other = torch.randint(3, (2, 4, 5), generator=generator)
    unigram, context = model.unigram(other), model.context(other)
    for i, r, c in ((0, 0, 0), (0, 0, 3), (1, 2, 0), (1, 3, 4)):
        colour, (left, above) = other[i, r, c].item(), neighbours(other[i], r, c)
        chance = share(1 / 3, 3 * weak, colour, lambda x: True)
        assert unigram[i, r, c].item() == pytest.approx(-log2(chance))
        chance = sum(
            share(chance, one, colour, lambda x, k=k, v=v: x[k] == v)
            for k, v in ((0, left), (1, above))) / 2
        chance = share(
            chance, strong, colour, lambda x, pair=(left, above): x[:2] == pair)
        assert context[i, r, c].item() == pytest.approx(-log2(chance))


def test_what_is_known_exactly():
    """Two colours at random cost one bit; rows of one colour cost the first pixel."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(2, (400, 8, 8), generator=generator)
    model = ContextModel(noise, 2)
    other = torch.randint(2, (100, 8, 8), generator=generator)
    assert model.unigram(other).mean() == pytest.approx(1, abs=0.01)
    assert model.context(other).mean() == pytest.approx(1, abs=0.01)
    rows = noise[:, :, :1].expand(-1, -1, 8).contiguous()
    model = ContextModel(rows, 2)
    bits = model.context(rows[:50])
    assert bits[:, :, 0].mean() == pytest.approx(1, abs=0.05)
    assert bits[:, :, 1:].max() < 0.05
    assert model.unigram(rows).mean() == pytest.approx(1, abs=0.05)


def test_smoothing_is_chosen_on_other_images():
    """Contexts that are noise are not believed, colours that are seldom are."""
    generator = torch.Generator().manual_seed(0)
    model = ContextModel(torch.randint(30, (50, 6, 6), generator=generator), 30)
    other = torch.randint(30, (50, 6, 6), generator=generator)
    assert model.context(other).mean() < log2(30) + 0.1
    # Crops of one photograph are all counted or all held out.
    same = torch.randint(30, (10, 6, 6), generator=generator)
    sources = torch.arange(50) % 10
    crops = ContextModel(same[sources], 30, sources)
    assert crops.context(other).mean() < log2(30) + 0.3
    wrong = ContextModel(same[sources], 30, torch.arange(50) // 3)
    assert wrong.context(other).mean() > crops.context(other).mean() + 0.5


def sample(bits, predicted=None, objective='autoregressive'):
    bits = torch.tensor(bits)
    return dict(
        bits=bits, tokens=torch.zeros(bits.shape, dtype=torch.long),
        predicted=torch.ones(bits.shape, dtype=torch.bool)
        if predicted is None else torch.tensor(predicted),
        palette=colours(), objective=objective)


def test_a_mean_over_images():
    metric = BitsPerPixel()
    metric.process({}, [sample([[1., 3.]]), sample([[5., 9.]])])
    assert metric.evaluate(2) == {'bits_per_pixel/model': 4.5}
    metric.process({}, [sample([[1., 3.]], [[True, False]], 'masked')])
    assert metric.evaluate(1) == {'bits_per_pixel/hidden': 1.}


def test_refused():
    with pytest.raises(ValueError, match=r"have bits, got \['pred'\]"):
        BitsPerPixel().process({}, [dict(pred=1)])
    with pytest.raises(ValueError, match='images must be at least 5, got 4'):
        BitsPerPixel(images=4)
    with pytest.raises(ValueError, match='at least 5 images, .* got 4'):
        ContextModel(torch.zeros(4, 2, 2, dtype=torch.long), 2)
    with pytest.raises(TypeError, match='images'):
        BitsPerPixel(images=5.)
