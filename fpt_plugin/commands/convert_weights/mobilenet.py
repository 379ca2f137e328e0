"""Map the keys of torchvision's MobileNetV2 to those of mmdet and mmseg."""

from __future__ import annotations

import re

from torch import Tensor

from ...openmmlab.pins import SCOPES

# Blocks of torchvision's features.1 to features.17 in each layer of the libraries.
_BLOCKS_PER_LAYER = (1, 2, 3, 4, 3, 3, 1)
_BLOCK_NAMES = [(layer, block)
                for layer, count in enumerate(_BLOCKS_PER_LAYER, start=1)
                for block in range(count)]


def convert_mobilenet_v2(state_dict: dict[str, Tensor],
                         library: str = 'mmdet') -> dict[str, Tensor]:
    """Rename torchvision's MobileNetV2 keys to a library's backbone.

    Args:
        state_dict: The weights of torchvision: ``features.*``, ``classifier.*``.
        library: ``'mmdet'`` or ``'mmseg'``.

    Returns:
        The backbone's state dict without the classifier, and for mmseg without
        ``features.18``, which its backbone lacks.

    Raises:
        ValueError: A key is not of torchvision's MobileNetV2, or the library is
            unknown.
    """
    if library not in SCOPES:
        raise ValueError(f"library must be 'mmdet' or 'mmseg', got {library!r}")
    renamed = {
        _library_key(key, library): value
        for key, value in state_dict.items()
        if not key.startswith('classifier.')
    }
    if library == 'mmseg':
        return {k: v for k, v in renamed.items() if not k.startswith('conv2.')}
    return renamed


def _library_key(key: str, library: str) -> str:
    match = re.fullmatch(r'features\.(\d+)\.(.+)', key)
    if match is None or int(match[1]) > 18:
        raise _foreign(key)
    index, rest = int(match[1]), match[2]
    if index in (0, 18):  # convolution, norm
        unit, _, tail = rest.partition('.')
        layer = 'conv1' if index == 0 else 'conv2'
        return f'{layer}.{_unit_part(unit, key)}.{tail}'
    layer, block = _BLOCK_NAMES[index - 1]
    # The first block has no expansion: depthwise, linear. The others have expand,
    # depthwise, linear. In torchvision, expand and depthwise convolutions and norms
    # are conv.i.0 and conv.i.1; those of linear are conv.i and conv.(i + 1).
    units = ['depthwise_conv'] if index == 1 else [
        'expand_conv', 'depthwise_conv'
    ]
    match = re.fullmatch(r'conv\.(\d)\.(?:(\d)\.)?(\w+)', rest)
    if match is None:
        raise _foreign(key)
    position = int(match[1])
    if match[2] is not None and position < len(units):
        unit, part = units[position], _unit_part(match[2], key)
    elif match[2] is None:
        unit = 'linear_conv'
        part = _unit_part(str(position - len(units)), key)
    else:
        raise _foreign(key)
    if library == 'mmseg':  # by position: conv.0, conv.1, conv.2
        unit = f'conv.{min(position, len(units))}'
    return f'layer{layer}.{block}.{unit}.{part}.{match[3]}'


def _unit_part(index: str, key: str) -> str:
    try:
        return {'0': 'conv', '1': 'bn'}[index]
    except KeyError:
        raise _foreign(key) from None


def _foreign(key: str) -> ValueError:
    return ValueError(f"the key {key!r} is not of torchvision's MobileNetV2")
