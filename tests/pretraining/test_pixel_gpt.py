"""PixelGPT: what sees what, generation, features, sizes."""

from __future__ import annotations

from math import log, log2

import pytest
import torch
from helpers.learning import descend, without_gradient
from helpers.pixel_gpts import COLOURS, SMALL, colours, images, pixel_gpt
from mmengine.structures import BaseDataElement
from torch.nn import functional as F

from fpt_plugin import PixelGPT
from fpt_plugin.pretraining.pixel_gpt import SIZES
from fpt_plugin.pretraining.pixel_transformer import PixelTransformer

objectives = pytest.mark.parametrize('objective', ['autoregressive', 'masked'])


@pytest.mark.parametrize('name, millions', [('S', 76), ('M', 455), ('L', 1362)])
def test_sizes_of_the_paper(name, millions):
    with torch.device('meta'):
        net = PixelTransformer(32 * 32, 512, **SIZES[name])
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)
    with torch.device('meta'):
        model = PixelGPT(name)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(count * 1e6)
    assert model.depth == SIZES[name]['depth']


def test_no_later_pixel_changes_an_earlier_prediction():
    model, x = pixel_gpt().double(), images(1).double()
    logits = model(x)[0]  # (20, colours)
    tokens = model.tokens(x)
    for place in range(20):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % COLOURS
        other = model(model.images(changed).double())[0]
        same = (other == logits).all(1)
        assert same[:place + 1].all()
        assert not same[place + 1:].any()


def test_what_features_have_seen():
    """Those of a causal model know the pixel itself, all others every pixel."""
    for objective in ('autoregressive', 'masked'):
        model, x = pixel_gpt(objective=objective).double(), images(1).double()
        before = model.features(x)
        changed = x.clone()
        changed[0, :, 2, 1] = colours()[0].double()  # pixel 9
        assert not torch.equal(model.tokens(x), model.tokens(changed))
        differs = [(a != b).any(1).flatten()
                   for a, b in zip(before, model.features(changed))]
        assert len(differs) == 3
        assert differs[0].nonzero().tolist() == [[9]]
        for layer in differs[1:]:
            assert layer[9:].all()
            assert layer[:9].any() == (objective == 'masked')


@objectives
def test_features_are_those_of_the_forward(objective):
    model, x = pixel_gpt(objective=objective), images()
    every = model.features(x)
    assert [f.shape for f in every] == [(2, 16, 5, 4)] * 3
    last, first = model.features(x, [2, 0])
    assert torch.equal(last, every[2]) and torch.equal(first, every[0])
    # By hand: the input of the first block, normalised.
    tokens = model.tokens(x)
    embedded = model.net.colours(tokens) + model.net.positions
    wanted = model.net.blocks[0].attention_norm(embedded)
    torch.testing.assert_close(every[0].flatten(2).transpose(1, 2), wanted)
    if objective == 'autoregressive':
        # What the last features predict is the next pixel.
        logits = model.net.predict(every[2].flatten(2).transpose(1, 2))
        torch.testing.assert_close(logits[:, :-1], model(x)[:, 1:])


def test_the_masked_objective_sees_both_sides():
    model = pixel_gpt(objective='masked').double()
    tokens = model.tokens(images(1).double())
    hidden = torch.tensor([[4, 11]])
    logits = model.logits(tokens, hidden)
    assert logits.shape == (1, 2, COLOURS)
    for place in range(20):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % COLOURS
        other = model.logits(changed, hidden)
        # A hidden pixel is seen by nobody, not even by itself.
        assert (other == logits).all() == (place in (4, 11))


def test_the_masked_loss_is_of_hidden_pixels():
    model, x = pixel_gpt(objective='masked', mask_ratio=0.3), images()
    torch.manual_seed(0)
    loss = model(x, mode='loss')
    torch.manual_seed(0)
    samples = model(x, mode='predict')
    for sample in samples:
        assert sample.predicted.sum() == 6  # of 20
        assert (sample.bits[~sample.predicted] == 0).all()
    mean = torch.stack([s.bits[s.predicted].mean() for s in samples]).mean()
    torch.testing.assert_close(loss['bits'], mean)
    torch.testing.assert_close(loss['loss'], mean * log(2))
    assert not torch.equal(samples[0].predicted, samples[1].predicted)


def test_bits_by_hand():
    """From the start: each pixel's probability behind those before it."""
    model, x = pixel_gpt(), images()
    samples = model(x, mode='predict')
    for sample, image in zip(samples, x):
        tokens = model.tokens(image[None])[0]
        assert torch.equal(sample.tokens.flatten(), tokens)
        for place in (0, 1, 7, 19):
            states = torch.cat([
                model.net.special[None],
                model.net.colours(tokens[:place]) + model.net.positions[:place]])
            for block in model.net.blocks:
                states = block(states[None], True)[0]
            logits = model.net.predict(model.net.norm(states[-1]))
            wanted = -logits.log_softmax(0)[tokens[place]] / log(2)
            torch.testing.assert_close(sample.bits.flatten()[place], wanted,
                                       rtol=1e-4, atol=1e-4)
        assert sample.predicted.all() and sample.objective == 'autoregressive'
    mean = torch.stack([sample.bits for sample in samples]).mean()
    torch.testing.assert_close(model(x, mode='loss')['bits'], mean)
    given = [BaseDataElement(metainfo=dict(img_path=name)) for name in 'ab']
    assert [s.img_path for s in model(x, given, mode='predict')] == ['a', 'b']


@pytest.mark.parametrize('settings', [
    {}, dict(top_k=2), dict(temperature=0.5), dict(top_k=1)])
def test_cached_generation_equals_uncached(settings):
    model = pixel_gpt().double()
    for prompt in (torch.zeros(3, 0, dtype=torch.long), torch.randint(6, (3, 7)),
                   torch.randint(6, (3, 19)), torch.randint(6, (3, 20))):
        cached, uncached = (model.generate(
            prompt, cached=cached, generator=torch.Generator().manual_seed(5),
            **settings) for cached in (True, False))
        assert cached.shape == (3, 20) and torch.equal(cached, uncached)
        assert torch.equal(cached[:, :prompt.shape[1]], prompt)


def test_the_cache_computes_the_same_states():
    from fpt_plugin.pretraining.pixel_transformer import LayerCache
    net = pixel_gpt().double().net
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    caches = [LayerCache(9) for _ in net.blocks]
    parts = [net(x[:, :4], True, caches)]
    parts += [net(x[:, i:i + 1], True, caches) for i in range(4, 9)]
    torch.testing.assert_close(torch.cat(parts, 1), net(x, True))


def test_generation_follows_the_probabilities():
    """The first pixel of many images, and the likeliest colours only."""
    model = pixel_gpt()
    wanted = model(images(1))[0, 0].softmax(0)
    drawn = model.generate(
        torch.zeros(4000, 0, dtype=torch.long),
        generator=torch.Generator().manual_seed(0))[:, 0]
    shares = drawn.bincount(minlength=COLOURS) / 4000
    torch.testing.assert_close(shares, wanted, atol=0.03, rtol=0)
    some = model.generate(torch.zeros(200, 0, dtype=torch.long), top_k=2)[:, 0]
    assert set(some.tolist()) == set(wanted.topk(2).indices.tolist())
    cold = model.generate(torch.zeros(50, 0, dtype=torch.long), temperature=1e-4)
    assert (cold == cold[0]).all() and cold[0, 0] == wanted.argmax()


def test_samples_and_completions():
    model, x = pixel_gpt(), images()

    def seeded(seed=3):
        return torch.Generator().manual_seed(seed)

    drawn = model.sample(3, generator=seeded())
    assert drawn.shape == (3, 3, 5, 4)
    assert torch.equal(drawn, model.sample(3, generator=seeded()))
    assert not torch.equal(drawn, model.sample(3, generator=seeded(4)))
    assert {tuple(c) for c in drawn.movedim(1, 3).reshape(-1, 3).tolist()} <= {
        tuple(c) for c in colours().tolist()}
    done = model.complete(x, generator=seeded())
    shown = model.images(model.tokens(x))
    assert torch.equal(done[:, :, :2], shown[:, :, :2])
    assert not torch.equal(done[:, :, 2:], shown[:, :, 2:])
    assert torch.equal(model.complete(x, rows=5), shown)
    assert torch.equal(model.complete(x, rows=4)[:, :, :4], shown[:, :, :4])


@objectives
def test_gradients(objective):
    """Of every parameter; in the first step, too, DDP needs one of each."""
    model = pixel_gpt(objective=objective).train()
    model(images(), mode='loss')['loss'].backward()
    assert without_gradient(model) == []
    new = PixelGPT(SMALL, (5, 4), COLOURS, objective, palette=colours())
    losses = new(images(), mode='loss')
    losses['loss'].backward()
    assert without_gradient(new, zero=True) == []
    assert losses['bits'].item() == pytest.approx(log2(COLOURS))  # prefers no colour


@objectives
def test_learns(objective):
    """Images of one colour each, which one pixel tells."""
    torch.manual_seed(0)
    model = PixelGPT(SMALL, 6, COLOURS, objective, palette=colours())
    x = colours()[:, :, None, None].expand(-1, -1, 6, 6)
    descend(model, lambda: model(x, mode='loss')['loss'], 60, 1e-2)
    first = log2(COLOURS) / 36 if objective == 'autoregressive' else 0
    assert model(x, mode='loss')['bits'].item() == pytest.approx(first, abs=0.1)


@objectives
def test_autocast(objective):
    model = pixel_gpt(objective=objective)
    torch.manual_seed(0)
    wanted = model(images(), mode='loss')['loss']
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(images(), mode='loss')['loss']
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=0.05, atol=0)
    assert without_gradient(model, zero=True) == []
    if objective == 'autoregressive':
        with torch.autocast('cpu', torch.bfloat16):
            assert model.sample(2).shape == (2, 3, 5, 4)


@objectives
def test_panels(objective):
    model = pixel_gpt(objective=objective, mask_ratio=0.4)
    batch = dict(inputs=[image.to(torch.uint8) for image in images()])
    panels = model.panels(batch)
    assert all(panel.shape == (2, 3, 5, 4) for panel in panels)
    shown, mapped, seen = panels[:3]
    assert torch.equal(shown, torch.stack(batch['inputs']).float())
    visible = (seen != 127).any(1)
    assert torch.equal(seen.movedim(1, 3)[visible], mapped.movedim(1, 3)[visible])
    if objective == 'autoregressive':
        assert visible[:, :2].all() and not visible[:, 2:].any()
        assert torch.equal(panels[3][:, :, :2], mapped[:, :, :2])
        assert len(panels) == 5
    else:
        assert (visible.sum((1, 2)) == 12).all() and len(panels) == 4


def test_a_preprocessor_that_normalises():
    """Normalised images in RGB are the same pixels."""
    plain = pixel_gpt()
    model = pixel_gpt(data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[100., 110., 120.], std=[50., 51., 52.],
        bgr_to_rgb=True))
    files = dict(inputs=[image.to(torch.uint8) for image in images()])
    a, b = (m.tokens(m.data_preprocessor(files)['inputs']) for m in (plain, model))
    assert torch.equal(a, b)


def test_layers_of_the_block_are_gpt2s():
    """x + attention(norm(x)), then x + mlp(norm(x)), in plain operators."""
    block = pixel_gpt().double().net.blocks[0]
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    y = F.layer_norm(x, (16, ), *block.attention_norm.parameters())
    query, key, value = F.linear(y, *block.attention.qkv.parameters()).view(
        6, 3, 2, 8).unbind(1)
    heads = []
    for head in range(2):
        scores = query[:, head] @ key[:, head].T / 8**0.5
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(1) @ value[:, head])
    z = x + F.linear(torch.cat(heads, 1), *block.attention.out.parameters())
    y = F.layer_norm(z, (16, ), *block.mlp_norm.parameters())
    y = F.gelu(F.linear(y, *block.mlp[0].parameters()), approximate='tanh')
    torch.testing.assert_close(block(x, True), z + F.linear(
        y, *block.mlp[2].parameters()))


@pytest.mark.parametrize('settings, error, text', [
    (dict(size='XS'), ValueError, "size must be one of .*'XS'"),
    (dict(size=dict(depth=2)), ValueError, 'size'),
    (dict(size=dict(SMALL, width=3)), ValueError, 'size'),
    (dict(size=dict(SMALL, depth=2.)), TypeError, 'depth'),
    (dict(size=dict(SMALL, num_heads=3)), ValueError, 'num_heads=3, got 16'),
    (dict(size=dict(SMALL, mlp_ratio=0)), ValueError, 'mlp_ratio'),
    (dict(image_size=0), ValueError, 'image_size'),
    (dict(image_size=(4, 4, 4)), ValueError, 'image_size'),
    (dict(image_size=4.), TypeError, 'image_size'),
    (dict(objective='bert'), ValueError, "objective .*'bert'"),
    (dict(mask_ratio=1), ValueError, 'mask_ratio'),
    (dict(mask_ratio=0.99, objective='masked'), ValueError, 'mask_ratio'),
    (dict(colours=1, palette=None), ValueError, 'colours'),
    (dict(palette=colours(4)), ValueError, 'palette'),
])
def test_refused_arguments(settings, error, text):
    with pytest.raises(error, match=text):
        pixel_gpt(**settings)


@pytest.mark.parametrize('call, error, text', [
    (lambda m: m(images(), mode='train'), ValueError, 'mode'),
    (lambda m: m(images().byte()), TypeError, 'inputs'),
    (lambda m: m.features(images(), [3]), ValueError, r'0\.\.2, got 3'),
    (lambda m: m.features(images(), [-1]), ValueError, 'layers'),
    (lambda m: m.features(images(), [1.]), TypeError, 'layers'),
    (lambda m: m.sample(0), ValueError, 'count'),
    (lambda m: m.sample(1, temperature=0), ValueError, 'temperature'),
    (lambda m: m.sample(1, top_k=0), ValueError, 'top_k'),
    (lambda m: m.sample(1, top_k=7), ValueError, 'top_k must be at most 6'),
    (lambda m: m.complete(images(), rows=6), ValueError, 'rows'),
    (lambda m: m.generate(torch.zeros(1, 21, dtype=torch.long)), ValueError, 'prompt'),
    *((lambda m, shape=shape: m(torch.rand(shape), mode='loss'), ValueError,
       r'inputs must be|image_size=\(5, 4\), got') for shape in (
        (1, 3, 4, 5), (1, 3, 32, 32), (3, 5, 4), (1, 1, 5, 4), (0, 3, 5, 4))),
    (lambda _: pixel_gpt(palette=None)(images()), ValueError, 'palette'),
    (lambda _: pixel_gpt(objective='masked').sample(1), ValueError,
     "objective must be 'autoregressive'"),
])
def test_refused_calls(call, error, text):
    with pytest.raises(error, match=text):
        call(pixel_gpt())
