"""State dicts of Swin, PVT and DeiT as their authors publish them.

Each function takes the values of a backbone of mmdet or mmseg and gives them the names
and layouts of the official code. The rules come from that code and not from the
converters of the libraries. Classifiers and norms that the libraries lack are added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]


def renamed(key: str, parts: dict[str, str]) -> str:
    """Replace parts of a key, in order."""
    for old, new in parts.items():
        key = key.replace(old, new)
    return key


def swin(values: Mapping[str, Tensor]) -> State:
    """Return the keys of microsoft/Swin-Transformer."""
    state = {}
    for key, value in values.items():
        if re.match(r'norm\d', key):
            continue  # norms of the stages, which a classifier does not have
        key = renamed(key, {
            'stages.': 'layers.', 'w_msa.': '', 'projection': 'proj',
            'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'})
        if 'downsample' in key:
            value = _merged(value)
        if key.endswith('relative_position_index'):
            value = _relative_positions(round(len(value)**0.5))
        state[key] = value
        if key.endswith('blocks.1.norm1.weight'):  # a buffer of shifted windows
            state[key.replace('norm1.weight', 'attn_mask')] = torch.zeros(4, 49, 49)
    return state | _classifier(values['patch_embed.projection.bias'].numel() * 8)


def _merged(value: Tensor) -> Tensor:
    """Reorder the inputs of patch merging.

    The official code concatenates neighbours column by column, each with all channels.
    mmdet and mmseg unfold: each channel has its neighbours row by row.
    """
    neighbours = value.unflatten(-1, (-1, 2, 2))  # (..., channel, row, column)
    return neighbours.movedim(-3, -1).transpose(-3, -2).flatten(-3)


def _relative_positions(side: int) -> Tensor:
    """Return rows of the table of biases (side**2, side**2), by query and key."""
    at = torch.stack(torch.meshgrid(
        torch.arange(side), torch.arange(side), indexing='ij')).flatten(1)
    rows, columns = at[:, :, None] - at[:, None] + side - 1
    return rows * (2 * side - 1) + columns


def pvt(values: Mapping[str, Tensor]) -> State:
    """Return the keys of whai362/PVT; version 1 has position embeddings."""
    state = {}
    first = any('pos_embed' in key for key in values)
    for key, value in values.items():
        stage, kind, rest = re.match(r'layers\.(\d)\.(\d)\.(.*)', key).groups()
        stage = int(stage) + 1
        if kind == '0':
            key = f'patch_embed{stage}.' + rest.replace('projection', 'proj')
        elif kind == '2':
            key = f'norm{stage}.{rest}'
        elif rest == '0.pos_embed':
            key = f'pos_embed{stage}'
            if stage == 4:  # with the position of the class token
                value = torch.cat([torch.rand_like(value[:, :1]), value], 1)
        else:
            block, rest = rest.split('.', 1)
            key = f'block{stage}.{int(block) - first}.' + renamed(
                rest, {'attn.out_proj': 'proj', 'ffn.layers.0': 'mlp.fc1',
                       'ffn.layers.3': 'mlp.fc2', 'ffn.layers.4': 'mlp.fc2',
                       'ffn.layers.1': 'mlp.dwconv.dwconv'})
            if re.search(r'fc\d\.weight', key):
                value = value.flatten(1)  # linear layers, not 1x1 convolutions
            if 'attn.in_proj_' in key:
                query, value = value.tensor_split([len(value) // 3])
                state[key.replace('attn.in_proj_', 'q.')] = query
                key = key.replace('attn.in_proj_', 'kv.')
        state[key] = value
    width = values['layers.3.0.projection.bias'].numel()
    if first:
        state['cls_token'] = torch.rand(1, 1, width)
    return state | _classifier(width)


def deit(values: Mapping[str, Tensor], side: int) -> State:
    """Return the keys of facebookresearch/deit, for side x side patches."""
    parts = {'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2',
             'layers.': 'blocks.', '.ln': '.norm', 'projection': 'proj',
             'attn.in_proj_': 'qkv.', 'attn.out_proj': 'proj'}
    state = {renamed(key, parts): value for key, value in values.items()}
    width = values['cls_token'].shape[-1]
    state['pos_embed'] = torch.rand(1, side * side + 1, width)
    return state | _classifier(width)


def _classifier(width: int) -> State:
    return {'norm.weight': torch.rand(width), 'norm.bias': torch.rand(width),
            'head.weight': torch.rand(10, width), 'head.bias': torch.rand(10)}
