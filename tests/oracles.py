"""Float64 formulas of FPT, and the measures that tests compare with.

The formulas read a layer's weights and nothing else of the package.
"""

import math

import torch


def relative_error(got, want, floor=0.0):
    """||got - want|| / ||want||; ``floor`` is a least denominator."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape
    distance = torch.linalg.vector_norm(got - want).item()
    if distance == 0:
        return 0.0
    norm = max(torch.linalg.vector_norm(want).item(), floor)
    return distance / norm if norm else math.inf


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
