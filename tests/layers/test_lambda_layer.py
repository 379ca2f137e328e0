"""Lambda layer: formula, initialisation, use as a plugin, memory formats."""

import copy

import pytest
import torch
from helpers.oracles import randomise, relative_error
from mmengine.model import BaseModule
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from fpt_plugin import LambdaLayer
from fpt_plugin.functional import reference

ARGS = dict(in_channels=16, num_heads=2, query_depth=3, context_size=5)


def formula(layer, x):
    """Compute the layer as in the paper, from its weights."""
    batch, _, height, width = x.shape
    heads, depth, intra = layer.num_heads, layer.query_depth, layer.intra_depth
    channels = layer.out_channels // heads
    qkv = torch.einsum('oc,bcyx->boyx', layer.qkv.weight[:, :, 0, 0], x)
    query, key, value = qkv.split(
        [heads * depth, depth * intra, channels * intra], dim=1)
    query = layer.norm_q(query).reshape(batch, heads, depth, height, width)
    value = layer.norm_v(value).reshape(batch, intra, channels, height, width)
    key = key.reshape(batch, intra, depth, -1)  # intra depth first
    content = reference.content_lambda(key.transpose(1, 2), value.flatten(3))
    if layer.content_bias is not None:
        content = content + layer.content_bias[None, :, None]
    out = torch.einsum('bhkyx,bkv->bhvyx', query, content)
    out = out + reference.position_lambda(query, value, layer.embedding)
    out = out.reshape(batch, heads * channels, height, width)
    if layer.residual:
        out = x + layer.gate.view(1, -1, 1, 1) * layer.norm_out(out)
    return out


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
    results = {}
    for dtype, function in ((torch.float64, formula),
                            (torch.float64, lambda layer, x: layer(x)),
                            (torch.float32, lambda layer, x: layer(x))):
        twin = copy.deepcopy(layer).to(dtype)
        leaf = x.to(dtype).requires_grad_()
        out = function(twin, leaf)
        assert out.dtype == dtype
        out.square().sum().backward()
        results[dtype, function is formula] = [
            out, leaf.grad, *(p.grad for p in twin.parameters())
        ]
    want = results[torch.float64, True]
    floor = 0.1 * max(x.norm().item() for x in want[1:])
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        for got, wanted in zip(results[dtype, False], want):
            assert relative_error(got, wanted, floor) <= tolerance


def test_order_of_the_output_is_head_major():
    """A head whose queries are zero leaves its own channels zero."""
    layer = randomise(LambdaLayer(**ARGS, norm_cfg=dict(type='GN', num_groups=1)))
    with torch.no_grad():
        layer.norm_q.bias.zero_()
        layer.norm_q.weight[:3] = 0
    out = layer(torch.randn(1, 16, 6, 6))
    assert not out[:, :8].any() and out[:, 8:].ne(0).all()


def test_plain_torch_trains():
    """Without registry or config, among other modules."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), LambdaLayer(16, context_size=7), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    images, labels = torch.randn(8, 3, 12, 12), torch.arange(8) % 2
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


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


@pytest.mark.parametrize('dtype, limit', [(torch.bfloat16, 2e-2),
                                          (torch.float16, 4e-3)])
def test_autocast(dtype, limit):
    layer = randomise(LambdaLayer(64, context_size=9)).eval()
    x = torch.randn(2, 64, 12, 13)
    want = copy.deepcopy(layer).double()(x.double())
    with torch.autocast('cpu', dtype=dtype):
        out = layer(x)
    assert relative_error(out, want) <= limit


def test_the_memory_format_is_kept():
    layer = LambdaLayer(16, num_heads=2, context_size=3)
    x = torch.randn(2, 16, 5, 6)
    assert layer(x).is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), layer(x))


def test_padding_only_changes_the_content_lambda(monkeypatch):
    """The softmax of the content runs over the whole map."""
    layer = randomise(LambdaLayer(16, num_heads=2, context_size=3)).eval()
    torch.nn.init.zeros_(layer.norm_v.bias)  # values of the padding are zero
    x = torch.randn(1, 16, 6, 6)
    padded = nn.functional.pad(x, (0, 4, 0, 4))
    assert not torch.allclose(layer(x), layer(padded)[..., :6, :6], atol=1e-3)
    monkeypatch.setattr(
        'fpt_plugin.layers.lambda_layer.content_lambda',
        lambda key, value: key.new_zeros(1, key.shape[1], value.shape[2]))
    assert layer(x).any()
    assert torch.allclose(layer(x), layer(padded)[..., :6, :6], atol=1e-6)


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
