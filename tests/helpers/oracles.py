"""Float64 formulas of FPT's layers, and the measures that tests compare with.

The formulas use the weights of a layer and nothing else of the package.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


def relative_error(got, want, floor=0.0):
    """Compute ||got - want|| / max(||want||, floor)."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape
    distance = torch.linalg.vector_norm(got - want).item()
    if distance == 0:
        return 0.0
    norm = max(torch.linalg.vector_norm(want).item(), floor)
    return distance / norm if norm else math.inf


def gradient_floor(gradients):
    """Return a tenth of the largest norm, to measure small gradients against.

    A gradient may be a small difference of large numbers, with large roundings.
    """
    return 0.1 * max(x.norm().item() for x in gradients)


def run_with_gradients(function, inputs, **options):
    """Return the output, and the gradients of a fixed linear function of it."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, **options)
    upstream = _normal(1)(*out.shape, dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def all_agree(got, want, tolerance=1e-10):
    """Assert that an output and its gradients agree."""
    floor = gradient_floor(want)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert relative_error(g, w, floor) <= tolerance, (
            f'gradient {i}' if i else 'output')


def _normal(seed):
    """Return randn with its own generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, **kwargs: torch.randn(shape, generator=generator, **kwargs)


def maps_of(*sizes, batch=2, channels=12, seed=0):
    """Draw maps (batch, channels, *size) with a nonzero mean of each channel.

    With zero means the mean key is about zero, and all parts of a mixture are about
    equal.
    """
    randn = _normal(seed)
    return [randn(batch, channels, *size) + randn(1, channels, 1, 1) for size in sizes]


def randomise(layer, seed=0):
    """Draw every parameter, including those that start at zero."""
    randn = _normal(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(randn(*parameter.shape) / parameter[0].numel()**0.5)
    return layer


def settle_norms(module, *inputs):
    """Give batch norms the statistics of the inputs, then freeze them.

    With drawn weights the maps would grow from block to block, until every softmax is
    one-hot and its gradients are zero.
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


def assert_layer_agrees(layer, maps, formula, tolerances=(1e-12, 1e-5),
                        **forward_options):
    """Compare a layer with a formula: one output and all gradients.

    Layer and maps are float32. The formula is called as ``formula(layer, *maps)`` with
    float64 copies, the layer also with ``forward_options``. The tolerances are those in
    float64 and in float32.
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

    want, want_grads = run(formula, torch.float64)
    # The comparison in float64 checks the gradients below the floor.
    floor = gradient_floor(want_grads.values())
    for dtype, tolerance in zip((torch.float64, torch.float32), tolerances):
        out, grads = run(lambda twin, *x: twin(*x, **forward_options), dtype)
        assert out.dtype == dtype
        assert relative_error(out, want) <= tolerance
        for name, grad in grads.items():
            assert relative_error(grad, want_grads[name], floor) <= tolerance, name


def project(conv, x):
    """Compute a 1x1 convolution without bias as a sum over channels."""
    assert conv.bias is None and conv.weight.shape[2:] == (1, 1)
    return torch.einsum('oc,bchw->bohw', conv.weight[:, :, 0, 0], x)


def pool(x, stride):
    """Average windows of stride x stride; windows at the border may be smaller."""
    height, width = x.shape[2:]
    return torch.stack([torch.stack([
        x[:, :, top:top + stride, left:left + stride].mean(dim=(2, 3))
        for left in range(0, width, stride)], dim=-1)
        for top in range(0, height, stride)], dim=-2)


def _softmax(scores, dim):
    """Normalise exponentials; the largest score is 0, so that exp cannot overflow."""
    maps = (scores - scores.amax(dim, keepdim=True)).exp()
    return maps / maps.sum(dim, keepdim=True)


def _shares(layer, x, count):
    """Return pi (B, N) from the mean of a map; equal shares without a map."""
    if x is None or count == 1:
        return layer.key.weight.new_full((1, count), 1 / count)
    return _softmax(x.mean(dim=(2, 3)) @ layer.mixture_weight.T, 1)


def mixture_transformer(layer, x, source, similarity, *, num_mixtures, key_stride=1,
                        scale=None, shares_from='key'):
    """Compute the Self- or Grounding-Transformer.

    Args:
        layer: Its query, key, value and mixture_weight are used.
        x: (B, C, H, W), the map of the queries.
        source: (B, C, h, w), the map of the keys and values.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        num_mixtures: Parts N of the mixture.
        key_stride: Pooling of ``source``.
        scale: Factor of the similarity; None: 1 / sqrt(E / N).
        shares_from: Source of pi: the mean of the ``'key'`` (right), of the
            ``'query'`` or of the ``'unpooled'`` keys (both wrong), or ``'equal'``.

    Returns:
        (B, E, H, W).
    """
    pooled = pool(source, key_stride) if key_stride > 1 else source
    query, key = project(layer.query, x), project(layer.key, pooled)
    shares = _shares(layer, dict(
        key=key, query=query, unpooled=project(layer.key, source),
        equal=None)[shares_from], num_mixtures)
    q, k = (m.unflatten(1, (num_mixtures, -1)).flatten(3)
            for m in (query, key))  # (B, N, d, L)
    if similarity == 'dot':
        scores = q.mT @ k  # (B, N, Lq, Lk)
    else:
        scores = -torch.cdist(
            q.mT, k.mT, compute_mode='donot_use_mm_for_euclid_dist').square()
    scale = q.shape[2]**-0.5 if scale is None else scale
    mixed = (shares[..., None, None] * _softmax(scale * scores, -1)).sum(1)
    value = project(layer.value, pooled).flatten(2)  # (B, E, Lk)
    return (value @ mixed.mT).unflatten(2, x.shape[2:])


def local_grounding_transformer(layer, fine, coarse, *, window, pad='zero',
                                num_mixtures=4, scale=None):
    """Compute the Locality-constrained Grounding-Transformer.

    Args:
        layer: Its query, key, value and mixture_weight are used.
        fine: (B, C, H, W), the map of the queries.
        coarse: (B, C, h, w), the map of keys and values.
        window: Side of the window around the cell that holds the query's centre.
        pad: 'zero': cells outside are zero; 'mask': they are left out.
        num_mixtures: Parts N.
        scale: Factor of the distance; None: 1 / sqrt(E / N).
    """
    query, key, value = project(layer.query, fine), project(
        layer.key, coarse), project(layer.value, coarse)
    # In units of a coarse cell the centre of row i is at (i + 1/2) h / H.
    rows, columns = (
        torch.tensor([math.floor((i + 0.5) * n / count) for i in range(count)],
                     device=fine.device)[:, None] + torch.arange(
                         window, device=fine.device)
        for n, count in zip(coarse.shape[2:], fine.shape[2:]))  # (H, w), (W, w)

    def windows(x):
        """Gather (B, C, h, w) to (B, C, H, W, w, w)."""
        padded = F.pad(x, [window // 2] * 4)
        return padded[:, :, rows[:, None, :, None], columns[:, None, :]]

    parts = (num_mixtures, -1)
    distance = (query.unflatten(1, parts)[..., None, None] -
                windows(key).unflatten(1, parts)).square().sum(2)
    scale = (query.shape[1] // num_mixtures)**-0.5 if scale is None else scale
    scores = -scale * distance  # (B, N, H, W, w, w)
    if pad == 'mask':
        scores = scores.masked_fill(windows(torch.ones_like(coarse[:, :1])) == 0,
                                    -torch.inf)
    maps = _softmax(scores.flatten(4), -1)  # (B, N, H, W, w * w)
    shares = _shares(layer, key, num_mixtures)
    return torch.einsum('bn,bnhwk,bchwk->bchw', shares.expand(len(maps), -1), maps,
                        windows(value).flatten(4))
