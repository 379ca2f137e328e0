"""Formulas of all layers and of the neck: the oracles of the fuzz tests.

They use the weights and arguments of a layer, but not its forward. Layer and maps are
in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fpt_plugin.functional import reference
from fpt_plugin.functional.cpu_workarounds import usual_strides
from fpt_plugin.layers import (
    GroundingTransformer,
    LambdaLayer,
    LocalGroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)
from helpers import oracles
from helpers.oracles import project


def self_transformer(layer, x, key_stride=None):
    return _mixture(layer, x, x, 'dot', key_stride)


def grounding_transformer(layer, fine, coarse, key_stride=None):
    return _mixture(layer, fine, coarse, 'neg_euclid', key_stride)


def _mixture(layer, x, source, similarity, key_stride):
    return oracles.mixture_transformer(
        layer, x, source, similarity, num_mixtures=layer.num_mixtures,
        key_stride=key_stride or layer.key_stride, scale=layer.scale)


def local_grounding_transformer(layer, fine, coarse):
    return oracles.local_grounding_transformer(
        layer, fine, coarse, window=layer.window, pad=layer.pad,
        num_mixtures=layer.num_mixtures, scale=layer.scale)


def rendering_transformer(layer, coarse, fine, dtype=torch.float32):
    """Weight Q of the coarse map by the mean K; resize V to its size by a stride."""
    weight = project(layer.key, fine).mean(dim=(2, 3), keepdim=True)
    query = _conv3x3(layer.query_conv, project(layer.query, coarse) * weight)
    stride = max(1, round(fine.shape[2] / coarse.shape[2]))
    value = _conv3x3(layer.value_conv, project(layer.value, fine), stride)
    value = _nearest(value, coarse.shape[2:], dtype)
    return _conv3x3(layer.out_conv, query + value)


def _nearest(x, size, dtype):
    """Resize with the pixels that torch's kernel chooses for a map of this ``dtype``.

    The choice depends on roundings: in float32 86 * (45 / 129) is less than 30.
    """
    numbers = torch.arange(x.shape[2:].numel(), dtype=dtype, device=x.device)
    pixels = F.interpolate(
        numbers.view(1, 1, *x.shape[2:]), size=tuple(size), mode='nearest')
    return x.flatten(2)[:, :, pixels.long().flatten()].unflatten(2, size)


def _conv3x3(conv, x, stride=1):
    return F.conv2d(x, conv.weight, conv.bias, stride, padding=1)


def normalised(norm, x):
    """Compute a norm with plain operators.

    On a CPU, the backward pass of torch's batch norm is wrong for one image in
    channels_last with an unusual stride of the batch.
    """
    shape = (1, -1, 1, 1)
    if isinstance(norm, torch.nn.GroupNorm):
        grouped = x.unflatten(1, (norm.num_groups, -1))
        var, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0, keepdim=True)
        out = ((grouped - mean) / (var + norm.eps).sqrt()).flatten(1, 2)
    else:
        assert not norm.training
        out = (x - norm.running_mean.view(shape)) / (
            norm.running_var.view(shape) + norm.eps).sqrt()
    return out * norm.weight.view(shape) + norm.bias.view(shape)


def lambda_layer(layer, x):
    """Compute norms by their formula, and position lambdas by a convolution."""
    heads, depth, intra = layer.num_heads, layer.query_depth, layer.intra_depth
    query, key, value = F.conv2d(x, layer.qkv.weight).split(
        [heads * depth, depth * intra, layer.value_depth * intra], dim=1)
    query = normalised(layer.norm_q, query).unflatten(1, (heads, depth))
    value = normalised(layer.norm_v, value).unflatten(1, (intra, layer.value_depth))
    content = reference.content_lambda(
        key.unflatten(1, (intra, depth)).transpose(1, 2).flatten(3),
        value.flatten(3))
    if layer.content_bias is not None:
        content = content + layer.content_bias[:, None]
    out = reference.position_lambda(query, value, layer.embedding)
    out = out + torch.einsum('bhkyx,bkv->bhvyx', query, content)
    out = out.flatten(1, 2)
    if layer.residual:
        out = x + layer.gate[:, None, None] * normalised(layer.norm_out, out)
    # The backward pass of torch's batch norm is wrong for some strides, on CUDA too.
    return usual_strides(out, x)


FORMULAS = {
    SelfTransformer: self_transformer,
    GroundingTransformer: grounding_transformer,
    LocalGroundingTransformer: local_grounding_transformer,
    RenderingTransformer: rendering_transformer,
    LambdaLayer: lambda_layer,
}


def strides_of(maps):
    """Return the default key strides, which pool each level to the coarsest grid."""
    strides = [1]
    for fine, coarse in reversed(list(zip(maps, maps[1:]))):
        ratio = max(f / c for f, c in zip(fine.shape[2:], coarse.shape[2:]))
        strides.insert(0, strides[0] * max(1, round(ratio)))
    return strides


def fpt(neck, inputs):
    """Compute the whole neck on the maps of its pyramid."""
    maps = list(inputs if neck.pyramid is None else neck.pyramid(inputs))
    count = neck.num_levels
    strides = neck.key_strides or strides_of(maps[:count])
    outs = []
    for level in range(count):
        found = []
        for layers in (neck.self_transformers, neck.grounding_transformers,
                       neck.rendering_transformers):
            for source in range(count):
                if (name := f'{level}_{source}') in layers:
                    kind = type(layers[name])
                    args = [maps[level]] + [maps[source]] * (source != level)
                    if kind in (SelfTransformer, GroundingTransformer):
                        args.append(strides[source])
                    found.append(FORMULAS[kind](layers[name], *args))
        outs.append(_fused(neck.fusions[level], maps[level], found))
    return outs + maps[count:]


def _fused(fusion, x, found):
    if isinstance(fusion, torch.nn.Identity):
        return x
    if not hasattr(fusion, 'reduce'):  # the paper's fusion
        return fusion.norm(_conv3x3(fusion.out_conv, torch.cat([x, *found], 1)))
    reduced = F.conv2d(torch.cat(found, 1), fusion.reduce.weight, fusion.reduce.bias)
    return x + _conv3x3(fusion.out_conv, fusion.norm(reduced))
