"""State dicts of Swin, PVT and DeiT as their authors publish them.

Each function takes the values that a host's backbone shall have and gives them
the names and layouts of the official code, written down here from that code and
not from the hosts' converters. Classifiers and norms that the hosts leave out are
added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]


def renamed(key: str, *pairs: tuple[str, str]) -> str:
    for pattern, to in pairs:
        key = re.sub(pattern, to, key)
    return key


def swin(values: Mapping[str, Tensor]) -> State:
    """Of microsoft/Swin-Transformer, without the norms after the stages."""
    state = {}
    for key, value in values.items():
        if re.match(r'norm\d', key):
            continue  # detectors and segmentors have them, the classifier not
        key = renamed(key, (r'^stages', 'layers'), (r'w_msa\.', ''),
                      (r'projection', 'proj'), (r'ffn\.layers\.0\.0', 'mlp.fc1'),
                      (r'ffn\.layers\.1', 'mlp.fc2'))
        if 'downsample' in key:
            value = _merged(value)
        if key.endswith('relative_position_index'):
            value = _relative_positions(round(len(value)**0.5))
        state[key] = value
        if key.endswith('blocks.1.norm1.weight'):  # a buffer of shifted windows
            state[key.replace('norm1.weight', 'attn_mask')] = torch.zeros(4, 49, 49)
    width = values['patch_embed.projection.bias'].numel() * 8
    return state | _classifier(width)


def _merged(value: Tensor) -> Tensor:
    """Patch merging reads neighbours column by column, each with all channels.

    The hosts unfold: each channel with its neighbours row by row.
    """
    neighbours = value.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return neighbours.movedim(-3, -1).transpose(-3, -2).flatten(-3)


def _relative_positions(side: int) -> Tensor:
    """Rows of the table of biases by query and key of a window."""
    at = torch.stack(torch.meshgrid(
        torch.arange(side), torch.arange(side), indexing='ij')).flatten(1)
    rows, columns = at[:, :, None] - at[:, None] + side - 1
    return rows * (2 * side - 1) + columns


def pvt(values: Mapping[str, Tensor]) -> State:
    """Of whai362/PVT; its first version has position embeddings."""
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
            if stage == 4:  # where the classifier's token is
                value = torch.cat([torch.rand_like(value[:, :1]), value], 1)
        else:
            block, rest = rest.split('.', 1)
            key = f'block{stage}.{int(block) - first}.' + renamed(
                rest, (r'attn\.out_proj', 'proj'),
                (r'ffn\.layers\.0', 'mlp.fc1'),
                (r'ffn\.layers\.[34]', 'mlp.fc2'),
                (r'ffn\.layers\.1', 'mlp.dwconv.dwconv'))
            if re.search(r'fc\d\.weight', key):
                value = value.flatten(1)  # linear there, a 1x1 convolution here
            if 'attn.in_proj_' in key:
                query, key_value = value.tensor_split([len(value) // 3])
                state[key.replace('attn.in_proj_', 'q.')] = query
                key = key.replace('attn.in_proj_', 'kv.')
                value = key_value
        state[key] = value
    width = values['layers.3.0.projection.bias'].numel()
    if first:
        state['cls_token'] = torch.rand(1, 1, width)
    return state | _classifier(width)


def deit(values: Mapping[str, Tensor], side: int) -> State:
    """Of facebookresearch/deit, for images of ``side`` by ``side`` patches."""
    state = {}
    for key, value in values.items():
        if key == 'pos_embed':
            value = torch.rand(1, side * side + 1, value.shape[-1])
        state[renamed(key, (r'^layers', 'blocks'), (r'\.ln', '.norm'),
                      (r'projection', 'proj'), (r'attn\.in_proj_', 'qkv.'),
                      (r'attn\.out_proj', 'proj'),
                      (r'ffn\.layers\.0\.0', 'mlp.fc1'),
                      (r'ffn\.layers\.1', 'mlp.fc2'))] = value
    return state | _classifier(values['cls_token'].shape[-1])


def _classifier(width: int) -> State:
    return {
        'norm.weight': torch.rand(width),
        'norm.bias': torch.rand(width),
        'head.weight': torch.rand(10, width),
        'head.bias': torch.rand(10)
    }
