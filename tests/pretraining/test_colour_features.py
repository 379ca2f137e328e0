"""Features of colours: similar colours share what PixelGPT learns."""

from __future__ import annotations

import pytest
import torch
from helpers.learning import descend, without_gradient
from helpers.pixel_gpts import COLOURS, SMALL, colours, images, pixel_gpt

from fpt_plugin import PixelGPT
from fpt_plugin.pretraining.pixel_transformer import EMBEDDING_STD, ColourFeatures

GREYS = torch.arange(64.)[:, None].expand(-1, 3) * 4  # 64 colours


@pytest.mark.parametrize('channels', [1, 7, 48])
def test_similar_colours_have_similar_features(channels):
    features = ColourFeatures(channels).double()(GREYS.double())
    assert features.shape == (64, channels)
    assert features.mean(0).abs().max() < 1e-12
    assert features.std().item() == pytest.approx(EMBEDDING_STD)
    near = (features[1:] - features[:-1]).norm(dim=1)
    far = (features[32:] - features[:-32]).norm(dim=1)
    assert near.mean() < 0.3 * far.mean()


def test_one_colour_for_all():
    features = ColourFeatures(6)(torch.full((4, 3), 20.))
    assert features.isfinite().all() and not features.any()


@pytest.mark.parametrize('objective', ['autoregressive', 'masked'])
def test_every_parameter_learns(objective):
    model = pixel_gpt(objective=objective, colour_features=True).train()
    model(images(), mode='loss')['loss'].backward()
    assert without_gradient(model) == []
    new = PixelGPT(SMALL, (5, 4), COLOURS, objective, colour_features=True,
                   palette=colours())
    losses = new(images(), mode='loss')
    # No colour is preferred at the start.
    assert losses['bits'].item() == pytest.approx(2.585, abs=1e-3)


def test_generation_and_features_use_the_same_embeddings():
    model = pixel_gpt(colour_features=True).double()
    x = images(1).double()
    tokens = model.tokens(x)
    drawn = [model.generate(tokens[:, :7], cached=cached, top_k=1)
             for cached in (True, False)]
    assert torch.equal(*drawn)
    likeliest = model.logits(drawn[0]).argmax(2)
    assert torch.equal(likeliest[:, 7:], drawn[0][:, 7:])
    embedded = model.net.tables(colours().double())[0][tokens] + model.net.positions
    torch.testing.assert_close(
        model.features(x, [0])[0].flatten(2).transpose(1, 2),
        model.net.blocks[0].attention_norm(embedded))


def test_unknown_colours_are_learned_from_similar_ones():
    """A pixel has its left neighbour's colour; half of the colours are never seen."""
    def row(tokens):
        return tokens[:, None].expand(-1, 8).clone()

    seen, new = torch.arange(0, 64, 2), torch.arange(1, 63, 2)
    costs = []
    for features in (False, True):
        torch.manual_seed(0)
        model = PixelGPT(dict(depth=1, embed_dims=32, num_heads=2), (1, 8), 64,
                         colour_features=features, palette=GREYS)
        x = model.images(row(seen))
        descend(model, lambda model=model, x=x: model(x, mode='loss')['loss'],
                60, 1e-2)
        # The likeliest colour behind a new one is near to it.
        found = model.logits(row(new))[:, 1:].argmax(2)
        costs.append((found - new[:, None]).abs().float().mean().item())
    assert costs[1] < 4 < costs[0]


def test_autocast_does_not_change_them():
    features = ColourFeatures(16)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(features(GREYS), found := features(GREYS))
    assert found.dtype == torch.float32 and torch.equal(found, features(GREYS))


@pytest.mark.parametrize('given', [True, False])
def test_checkpoints_of_the_other_kind_are_refused(given):
    weights = pixel_gpt(colour_features=given).state_dict()
    text = f'has colour_features={given}, the model has colour_features={not given}'
    with pytest.raises(ValueError, match=text):
        pixel_gpt(colour_features=not given).load_state_dict(weights, strict=False)


def test_the_palette_must_be_there_and_travels():
    model = pixel_gpt(colour_features=True)
    empty = PixelGPT(SMALL, (5, 4), COLOURS, colour_features=True)
    tokens = torch.zeros(1, 20, dtype=torch.long)
    with pytest.raises(ValueError, match='the palette must have its 6 colours'):
        empty.logits(tokens)
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty.logits(tokens), model.logits(tokens))
    with pytest.raises(TypeError, match='colour_features must be'):
        PixelGPT(SMALL, colour_features='yes')
