"""Lambda layer: formula, initialisation, use as a plugin, memory formats."""

import pytest
import torch
from helpers.layer_formulas import lambda_layer
from helpers.oracles import assert_layer_agrees, randomise
from mmengine.model import BaseModule
from mmengine.registry import MODELS, init_default_scope

from fpt_plugin import LambdaLayer

ARGS = dict(in_channels=16, num_heads=2, query_depth=3, context_size=5)


@pytest.mark.parametrize('options', [
    dict(), dict(intra_depth=2), dict(out_channels=8), dict(content_bias=True),
    dict(residual=True), dict(context_size=(3, 7)),
    dict(norm_cfg=dict(type='GN', num_groups=2), residual=True,
         intra_depth=2, content_bias=True)
])
@pytest.mark.parametrize('size', [(7, 10), (1, 1), (1, 6)])
def test_agrees_with_the_paper(options, size):
    layer = randomise(LambdaLayer(**{**ARGS, **options})).eval()
    x = torch.randn(2, 16, *size)
    assert_layer_agrees(layer, [x], lambda_layer, (1e-11, 2e-5))


def test_scales_at_the_start():
    """Variances 1 / (k C) of queries, 1 / C of keys and values, 1 of embeddings."""
    layer = LambdaLayer(512, residual=True, content_bias=True)
    query, key, value = layer.qkv.weight.detach().split(layer.widths)
    assert query.var() * 512 * 16 == pytest.approx(1, rel=0.1)
    assert key.var() * 512 == pytest.approx(1, rel=0.1)
    assert value.var() * 512 == pytest.approx(1, rel=0.1)
    assert layer.embedding.detach().var() == pytest.approx(1, rel=0.1)
    assert not layer.gate.any() and not layer.content_bias.any()


def test_init_cfg_of_a_parent_does_not_change_the_start():
    layer = LambdaLayer(64, residual=True)
    parent = BaseModule(dict(type='Constant', val=3, layer='Conv2d'))
    parent.layer = layer
    parent.init_weights()
    assert layer.qkv.weight.std() < 0.2


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('norm_cfg', [
    dict(type='BN'), dict(type='GN', num_groups=4)
])
def test_a_plugin_does_not_change_a_trained_resnet_at_the_start(host, norm_cfg):
    init_default_scope(host)
    cfg = dict(type='ResNet', depth=50, norm_eval=True)
    plugin = dict(
        cfg=dict(type='LambdaLayer', residual=True, norm_cfg=norm_cfg),
        stages=(False, False, True, True),
        position='after_conv2')
    plain = MODELS.build(cfg)
    grown = MODELS.build(dict(cfg, plugins=[plugin]))
    for _ in range(2):
        missing, unexpected = grown.load_state_dict(
            plain.state_dict(), strict=False)
        assert not unexpected
        assert missing and all('.lambda_layer.' in key for key in missing)
        image = torch.randn(2, 3, 64, 96)
        for net in (plain, grown):
            net.train()  # not chained: it may return None
        for a, b in zip(plain(image), grown(image)):
            assert torch.equal(a, b)
        grown.init_weights()
    sum(x.sum() for x in grown(image)).backward()
    layers = [m for m in grown.modules() if isinstance(m, LambdaLayer)]
    assert len(layers) == 9
    assert all(p.grad is not None for x in layers for p in x.parameters())
    assert all(x.gate.grad.any() for x in layers)


def test_the_memory_format_is_kept():
    layer = LambdaLayer(16, num_heads=2, context_size=3)
    x = torch.randn(2, 16, 5, 6)
    assert layer(x).is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), layer(x))


def test_exported_graph_works_at_every_size():
    layer = randomise(LambdaLayer(**ARGS)).eval()
    sizes = {2: torch.export.Dim('height', min=2, max=64),
             3: torch.export.Dim('width', min=2, max=64)}
    program = torch.export.export(
        layer, (torch.randn(2, 16, 7, 9), ), dynamic_shapes=(sizes, )).module()
    other = torch.randn(2, 16, 12, 5)
    torch.testing.assert_close(program(other), layer(other))


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('gradient', [
    torch.contiguous_format, torch.channels_last])
def test_one_image_in_channels_last_has_its_gradients(residual, gradient):
    """Compare gradients through a norm with those of a batch of two equal images."""
    layer = randomise(LambdaLayer(**ARGS, residual=residual)).eval()
    norm = torch.nn.BatchNorm2d(16).eval()
    image = torch.randn(1, 16, 5, 6).contiguous(
        memory_format=torch.channels_last)
    upstream = torch.randn(1, 16, 5, 6).contiguous(memory_format=gradient)
    grads = []
    for copies in (1, 2):
        x = image.repeat(copies, 1, 1, 1).contiguous(
            memory_format=torch.channels_last).requires_grad_()
        norm(layer(x)).backward(
            upstream.repeat(copies, 1, 1, 1).contiguous(memory_format=gradient))
        grads.append(x.grad[:1])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('options, error, words', [
    (dict(context_size=4), ValueError, 'context_size must be odd.* got 4'),
    (dict(context_size=(3, 2)), ValueError, 'context_size must be odd'),
    (dict(context_size=(3, 3, 3)), TypeError, 'context_size must be an int or'),
    (dict(context_size=True), TypeError, 'context_size must be an int or two'),
    (dict(in_channels=0), ValueError, 'in_channels must be at least 1'),
    (dict(num_heads=3), ValueError, 'multiple of num_heads.*16.*3'),
    (dict(query_depth='16'), TypeError, 'query_depth must be an int'),
    (dict(residual=True, out_channels=8), ValueError, 'residual=True needs'),
    (dict(norm_cfg=None), TypeError, 'norm_cfg must be a dict with a type'),
    (dict(norm_cfg=dict(type='GN', num_groups=4)), ValueError,
     'num_groups=4.*6 channels of the queries'),
    (dict(norm_cfg=dict(type='GN', num_groups=3)), ValueError,
     'num_groups=3.*8 channels of the values'),
])
def test_bad_arguments(options, error, words):
    with pytest.raises(error, match=words):
        LambdaLayer(**{**ARGS, **options})
