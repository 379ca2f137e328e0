"""IPT's network, overlapping crops and the contrastive loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fpt_plugin.functional import reference
from fpt_plugin.functional.contrastive import patch_contrastive_loss
from fpt_plugin.restoration.crops import in_crops
from fpt_plugin.restoration.ipt import IPTNet
from fpt_plugin.restoration.transformer import Attention, DecoderLayer

SMALL = dict(channels=4, crop=12, depth=2, num_heads=3)


def test_number_of_parameters_of_the_paper():
    with torch.device('meta'):
        net = IPTNet()
    million = {name: sum(p.numel() for p in part.parameters()) / 1e6
               for name, part in dict(
                   heads=net.heads, tails=net.tails, tasks=net.task_embeddings,
                   encoder=net.transformer.encoder,
                   decoder=net.transformer.decoder).items()}
    assert {name: round(value, 2) for name, value in million.items()} == dict(
        heads=2.47, tails=0.79, tasks=0.88, encoder=47.84, decoder=63.78)
    assert net.positions.shape == (256, 576)
    assert sum(p.numel() for p in net.parameters()) == 115_902_930


def test_tokens_are_patches():
    net, x = IPTNet(**SMALL), torch.randn(2, 4, 12, 12)
    tokens = net._to_tokens(x)
    assert torch.equal(tokens, F.unfold(x, 3, stride=3).transpose(1, 2))
    assert torch.equal(net._to_maps(tokens), x)


def test_attention_equals_torchs_without_biases():
    ours = Attention(12, 3).double()
    torchs = torch.nn.MultiheadAttention(12, 3, bias=False, batch_first=True).double()
    with torch.no_grad():
        torchs.in_proj_weight.copy_(torch.cat(
            [ours.query.weight, ours.key.weight, ours.value.weight]))
        torchs.out_proj.weight.copy_(ours.out.weight)
    q, k, v = torch.randn(3, 2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(q, k, v), torchs(q, k, v)[0])


def test_decoder_layer_equals_the_papers():
    """arXiv 2012.00364, Eq. 3."""
    layer = DecoderLayer(12, 3, 2.).double()
    z, memory = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    task = torch.randn(5, 12, dtype=torch.float64)
    y = layer.norm(z)
    first = layer.attention(y + task, y + task, y) + z
    second = layer.cross_attention(
        layer.cross_norm(first) + task, memory, memory) + first
    torch.testing.assert_close(
        layer(z, memory, task), layer.mlp(second) + second)


@pytest.mark.parametrize('call, text', [
    (lambda: IPTNet(**dict(SMALL, crop=13)), 'crop must be .* patch=3, got 13'),
    (lambda: IPTNet(**dict(SMALL, num_heads=5)), 'num_heads must .* = 36, got 5'),
    (lambda: in_crops(torch.nn.Identity(), torch.rand(1, 3, 20, 20), 12, -1),
     'overlap must be in .*, got -1'),
    (lambda: in_crops(torch.nn.Identity(), torch.rand(1, 3, 20, 20), 12, 12),
     'overlap must be in .*, got 12'),
    *((lambda shape=shape: patch_contrastive_loss(torch.rand(shape)),
       'features must be') for shape in ((3, 4), (0, 2, 3), (2, 0, 3))),
])
def test_bad_arguments(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize('size', [
    (12, 12), (5, 30), (50, 13), (24, 24), (1, 1), (31, 40)])
@pytest.mark.parametrize('overlap', [0, 4, 11])
def test_crops_of_a_local_network_equal_its_whole_output(size, overlap):
    images = torch.rand(2, 3, *size, dtype=torch.float64)

    def twice(x):
        return F.interpolate(x, scale_factor=2)[:, :2] + 1

    torch.testing.assert_close(
        in_crops(twice, images, 12, overlap, 2, batch=5), twice(images))


def test_an_image_of_one_crop_is_run_once():
    calls = []

    def network(x):
        calls.append(len(x))
        return x.flip(3)

    images = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(in_crops(network, images, 12, 4), images.flip(3))
    assert calls == [2]


def test_crops_have_no_seams():
    """Blending reduces errors at the borders of crops."""

    def network(x):
        x = x.clone()
        x[..., 0] = x[..., -1] = 1.
        return x

    out = in_crops(network, torch.zeros(1, 3, 12, 60), 12, 8)
    inside = out[..., 6:-6]
    assert inside.max() < 0.15
    assert (inside[..., 1:] - inside[..., :-1]).abs().max() < 0.15


@pytest.mark.parametrize('shape', [(3, 4, 5), (2, 1, 7), (4, 3, 1)])
def test_contrastive_loss_equals_the_formula(shape):
    features = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    got = patch_contrastive_loss(features)
    expected = reference.patch_contrastive_loss(features)
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(x, features) for x in (got, expected))):
        torch.testing.assert_close(a, b)


def test_contrastive_loss_of_special_cases():
    features = torch.randn(1, 4, 5, requires_grad=True)
    loss = patch_contrastive_loss(features)
    loss.backward()
    assert loss == 0 and not features.grad.any()  # a single image
    one = torch.tensor([[[1., 0.], [1., 0.]], [[1., 0.], [1., 0.]]])
    apart = one * torch.tensor([1., -1.])[:, None, None]
    assert patch_contrastive_loss(apart) < patch_contrastive_loss(one) - 1.9
    assert patch_contrastive_loss(apart.bfloat16()).dtype == torch.float32
