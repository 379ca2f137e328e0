"""Float64 formulas of FPT, and the measures that tests compare with.

The formulas read a layer's weights and nothing else of the package.
"""

import copy
import math

import torch
from torch import nn


def relative_error(got, want, floor=0.0):
    """||got - want|| / ||want||; ``floor`` is a least denominator."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape
    distance = torch.linalg.vector_norm(got - want).item()
    if distance == 0:
        return 0.0
    norm = max(torch.linalg.vector_norm(want).item(), floor)
    return distance / norm if norm else math.inf


def run_with_gradients(function, inputs, **options):
    """The output, and the gradients of a fixed linear function of it."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, **options)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(
        out.shape, generator=generator, dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def all_agree(got, want, tolerance=1e-10):
    """Assert that an output and its gradients agree.

    A small gradient is measured against a tenth of the largest.
    """
    assert len(got) == len(want)
    floor = 0.1 * max(x.norm().item() for x in want)
    for i, (g, w) in enumerate(zip(got, want)):
        what = f'gradient {i}' if i else 'output'
        assert relative_error(g, w, floor) <= tolerance, what


def maps_of(*sizes, batch=2, channels=12, seed=0):
    """Maps (batch, channels, *size) whose channels have means of their own.

    Without them the mean of the keys would be about zero and the parts of a
    mixture about equal.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    return [
        randn(batch, channels, *size) + randn(1, channels, 1, 1)
        for size in sizes
    ]


def randomise(layer, seed=0):
    """Draw every parameter, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            fan_in = parameter[0].numel()
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) /
                fan_in**0.5)
    return layer


def settle_norms(module, *inputs):
    """Batch norms get the averages of what they see, and stay there.

    Drawn weights would otherwise grow maps from block to block, until every
    softmax is one-hot and its gradients are zero.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.train()
            norm.momentum = None
        with torch.no_grad():
            module(*inputs)
        for norm in norms:
            norm.eval()
    return module


def assert_layer_agrees(layer, maps, formula, **forward_options):
    """One output and one gradient of everything, layer and formula.

    Args:
        layer: A layer in float32, with all parameters drawn.
        maps: What its forward takes, in float32.
        formula: ``formula(layer, *maps)`` with a float64 copy of both.
        forward_options: For the layer's forward alone.
    """

    def run(function, dtype):
        twin = copy.deepcopy(layer).to(dtype)
        leaves = [m.detach().to(dtype).requires_grad_() for m in maps]
        out = function(twin, *leaves)
        out.square().sum().backward()
        assert all(p.grad is not None for p in twin.parameters())
        grads = {n: p.grad for n, p in twin.named_parameters()}
        grads.update((f'map {i}', m.grad) for i, m in enumerate(leaves))
        return out, grads

    def forward(twin, *leaves):
        return twin(*leaves, **forward_options)

    want, want_grads = run(formula, torch.float64)
    # A gradient may vanish (queries that see one key), with the digits of what
    # cancels: its error is measured against no less than a tenth of the
    # largest gradient. Float64 judges the small ones.
    floor = 0.1 * max(g.norm().item() for g in want_grads.values())
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        out, grads = run(forward, dtype)
        assert out.dtype == dtype
        assert relative_error(out, want) <= tolerance
        for name, grad in grads.items():
            error = relative_error(grad, want_grads[name], floor)
            assert error <= tolerance, name


def project(conv, x):
    """A 1x1 convolution without bias as a sum over channels."""
    assert conv.bias is None and conv.weight.shape[2:] == (1, 1)
    return torch.einsum('oc,bchw->bohw', conv.weight[:, :, 0, 0], x)


def pool(x, stride):
    """Means of stride x stride windows, of what the last ones hold."""
    height, width = x.shape[2:]
    rows = [
        torch.stack([
            x[:, :, top:top + stride, left:left + stride].mean(dim=(2, 3))
            for left in range(0, width, stride)
        ], dim=-1) for top in range(0, height, stride)
    ]
    return torch.stack(rows, dim=-2)


def mixture_transformer(layer,
                        x,
                        source,
                        similarity,
                        *,
                        num_mixtures,
                        key_stride=1,
                        scale=None,
                        shares_from='key'):
    """Self- and Grounding-Transformer, one image and one part at a time.

    Args:
        layer: Its query, key, value and mixture_weight are used.
        x: (B, C, H, W), the map of the queries.
        source: (B, C, h, w), the map of the keys and values.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        num_mixtures: Parts N of the mixture.
        key_stride: Pooling of ``source``.
        scale: Factor of the similarity; None: 1 / sqrt(E / N).
        shares_from: What pi comes from: the mean of the ``'key'`` (right),
            of the ``'query'`` or of the ``'unpooled'`` keys (both wrong), or
            ``'equal'``.

    Returns:
        (B, E, H, W).
    """
    unpooled = source
    source = pool(source, key_stride)
    query, key, value = (
        project(conv, m) for conv, m in ((layer.query, x), (layer.key, source),
                                         (layer.value, source)))
    depth = query.shape[1] // num_mixtures
    scale = 1 / math.sqrt(depth) if scale is None else scale
    images = []
    for b in range(x.shape[0]):
        if shares_from == 'equal' or num_mixtures == 1:
            shares = x.new_full((num_mixtures, ), 1 / num_mixtures)
        else:
            mean = {
                'key': key,
                'query': query,
                'unpooled': project(layer.key, unpooled)
            }[shares_from][b].mean(dim=(1, 2))
            shares = torch.stack([w @ mean for w in layer.mixture_weight])
            shares = shares.exp() / shares.exp().sum()
        out = 0
        for n in range(num_mixtures):
            part = slice(n * depth, (n + 1) * depth)
            q = query[b, part].flatten(1).T[:, None]
            k = key[b, part].flatten(1).T[None]
            if similarity == 'dot':
                scores = scale * (q * k).sum(-1)
            else:
                scores = -scale * (q - k).pow(2).sum(-1)
            # The largest score of a query is 0 at most: exp cannot overflow.
            maps = (scores - scores.amax(-1, keepdim=True)).exp()
            maps = maps / maps.sum(-1, keepdim=True)
            out = out + shares[n] * maps @ value[b].flatten(1).T
        images.append(out.T.reshape(-1, *x.shape[2:]))
    return torch.stack(images)


def local_grounding_transformer(layer,
                                fine,
                                coarse,
                                *,
                                window,
                                pad='zero',
                                num_mixtures=4,
                                scale=None):
    """LGT, one image, one query, one part and one key at a time.

    Args:
        layer: Its query, key, value and mixture_weight are used.
        fine: (B, C, H, W), the map of the queries.
        coarse: (B, C, h, w), the map of keys and values.
        window: Side of the window around the cell that holds the centre.
        pad: 'zero': what lies outside is zero; 'mask': it is left out.
        num_mixtures: Parts N.
        scale: Of the distance; None is the default, 1 / sqrt(E / N).
    """
    query, key, value = (
        project(conv, x) for conv, x in ((layer.query, fine),
                                         (layer.key, coarse), (layer.value,
                                                               coarse)))
    embed = query.shape[1]
    depth = embed // num_mixtures
    scale = depth**-0.5 if scale is None else scale
    if layer.mixture_weight is None:
        shares = query.new_ones(len(query), 1)
    else:
        mean = key.mean(dim=(2, 3))
        shares = torch.softmax(mean @ layer.mixture_weight.T, dim=1)
    (height, width), (rows, columns) = fine.shape[2:], coarse.shape[2:]
    reach = window // 2
    out = []
    for image in range(len(query)):
        for i in range(height):
            for j in range(width):
                # in units of a coarse cell the centre is at (i + 1/2) h / H
                row = math.floor((i + 0.5) * rows / height)
                column = math.floor((j + 0.5) * columns / width)
                keys, values = [], []
                for r in range(row - reach, row + reach + 1):
                    for c in range(column - reach, column + reach + 1):
                        if 0 <= r < rows and 0 <= c < columns:
                            keys.append(key[image, :, r, c])
                            values.append(value[image, :, r, c])
                        elif pad == 'zero':
                            keys.append(torch.zeros_like(key[image, :, 0, 0]))
                            values.append(
                                torch.zeros_like(value[image, :, 0, 0]))
                keys, values = torch.stack(keys), torch.stack(values)
                total = 0
                for n in range(num_mixtures):
                    part = slice(n * depth, (n + 1) * depth)
                    difference = query[image, part, i, j] - keys[:, part]
                    scores = -scale * (difference**2).sum(dim=1)
                    total = total + shares[image, n] * (
                        torch.softmax(scores, dim=0) @ values)
                out.append(total)
    return torch.stack(out).view(-1, height, width, embed).permute(0, 3, 1, 2)
