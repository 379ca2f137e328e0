"""Map the keys of other projects' state dicts to those of our backbones.

Each function takes a state dict, which is not changed, and returns a
:class:`Conversion`. A lambda layer replaces the ``conv2`` of a ResNet block. Its
position embedding is (k, u, r, r). In the other projects it is a convolution with a
bias (k,). This bias is the same at all positions, so it becomes the
``content_bias`` (k,) of the content lambda.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .mobilenet import convert_mobilenet_v2

CLASSIFIER = 'classifier head'
STEM = 'the stem differs'
LAMBDA = 'replaced by a lambda layer'
NO_PART = 'the backbone has no such part'
NO_CONV2 = "not in mmseg's MobileNetV2"

Shapes = Mapping[str, torch.Size]


@dataclass
class Conversion:
    """The converted tensors of a checkpoint.

    Attributes:
        state_dict: The converted tensors by new keys.
        sources: The old keys by new keys.
        skipped: Reasons by the old keys that were left out.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def take(self, source: str, key: str, value: Tensor) -> None:
        """Add a tensor under its new key.

        Raises:
            ValueError: The new key is used already.
        """
        if key in self.sources:
            raise ValueError(f'{self.sources[key]} and {source} would both be '
                             f'{key}')
        self.state_dict[key] = value.detach().contiguous()
        self.sources[key] = source


# ------------------------------------------------------------ timm's nets

_TIMM_MODULES = {
    'conv1_1x1.conv': 'conv1',
    'conv1_1x1.bn': 'bn1',
    'conv2_kxk.conv': 'conv2',
    'conv2_kxk.bn': 'bn2',
    'self_attn.qkv': 'conv2.qkv',
    'self_attn.norm_q': 'conv2.norm_q',
    'self_attn.norm_v': 'conv2.norm_v',
    'post_attn': 'bn2',
    'conv3_1x1.conv': 'conv3',
    'conv3_1x1.bn': 'bn3',
    'shortcut.conv': 'downsample.0',
    'shortcut.bn': 'downsample.1',
}
# Our stem is a Sequential with three modules for each convolution of timm's stem:
# convolution, norm, activation.
_TIMM_STEM = {
    f'conv{i}.{part}': f'stem.{3 * (i - 1) + step}'
    for i in (1, 2, 3)
    for step, part in enumerate(('conv', 'bn'))
}


def _conv3d_last(weight: Tensor) -> Tensor:
    """Convert (k, u, r, r, 1), a convolution over (H, W, v), to (k, u, r, r)."""
    fits = weight.dim() == 5 and weight.shape[-1] == 1
    return weight[..., 0] if fits else weight


def _conv3d_first(weight: Tensor) -> Tensor:
    """Convert (k, u, 1, r, r), a convolution over (v, H, W), to (k, u, r, r)."""
    fits = weight.dim() == 5 and weight.shape[2] == 1
    return weight[:, :, 0] if fits else weight


def _relative_positions(table: Tensor) -> Tensor:
    """Convert a table (2H-1, 2W-1, k) to an embedding (k, 1, 2H-1, 2W-1).

    The table is indexed by the offset of the context to the query. As a local
    embedding of that size it covers all offsets in an HxW map, so the layer is
    the same, and it runs at any size.
    """
    # (2H-1, 2W-1, k) -> (k, 1, 2H-1, 2W-1)
    return table.permute(2, 0, 1)[:, None] if table.dim() == 3 else table


_TIMM_TENSORS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    'self_attn.conv_lambda.weight': ('conv2.embedding', _conv3d_last),
    'self_attn.conv_lambda.bias': ('conv2.content_bias', torch.Tensor.detach),
    'self_attn.pos_emb': ('conv2.embedding', _relative_positions),
}


def map_timm_lambda(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Rename the keys of timm's lambda_resnet26t, 26rpt_256 and 50ts.

    Raises:
        ValueError: A key is not of these nets.
    """
    conversion = Conversion()
    for key, value in state_dict.items():
        if key.startswith('head.'):
            conversion.skipped[key] = CLASSIFIER
            continue
        block, rest, modules = '', key, _TIMM_STEM
        if match := re.fullmatch(r'stages\.([0-3])\.(\d+)\.(.+)', key):
            block = f'layer{int(match[1]) + 1}.{match[2]}.'
            rest, modules = match[3], _TIMM_MODULES
        elif key.startswith('stem.'):
            rest = key[len('stem.'):]
        else:
            raise _foreign(key, "timm's lambda nets")
        module, _, name = rest.rpartition('.')
        if block and rest in _TIMM_TENSORS:
            new, convert = _TIMM_TENSORS[rest]
            conversion.take(key, block + new, convert(value))
        elif module in modules:
            conversion.take(key, f'{block}{modules[module]}.{name}', value)
        else:
            raise _foreign(key, "timm's lambda nets")
    return conversion


# ------------------------------------------------------- d-li14's LambdaResNet

_D_LI14_MODULES = ('conv1', 'bn1', 'bn2', 'conv3', 'bn3', 'downsample.0',
                   'downsample.1', 'conv2.norm_q', 'conv2.norm_v')


def map_d_li14(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Rename the keys of d-li14/lambda.pytorch.

    Raises:
        ValueError: A key is not of that net.
    """
    conversion = Conversion()
    for key, value in state_dict.items():
        match = re.fullmatch(r'(layer[1-4]\.\d+\.)(.+)\.(\w+)', key)
        if key.startswith('fc.'):
            conversion.skipped[key] = CLASSIFIER
        elif key.startswith(('conv1.', 'bn1.')):
            conversion.take(key, key, value)
        elif match is None:
            raise _foreign(key, "d-li14's LambdaResNet")
        elif match[2] in _D_LI14_MODULES:
            conversion.take(key, key, value)
        elif match[2] == 'conv2.conv_qkv':
            conversion.take(key, f'{match[1]}conv2.qkv.{match[3]}', value)
        elif match[2] == 'conv2.lambda_conv' and match[3] == 'weight':
            conversion.take(key, f'{match[1]}conv2.embedding',
                            _conv3d_first(value))
        elif match[2] == 'conv2.lambda_conv' and match[3] == 'bias':
            conversion.take(key, f'{match[1]}conv2.content_bias', value)
        else:
            raise _foreign(key, "d-li14's LambdaResNet")
    return conversion


# ------------------------------------------------------------------- ResNets


def map_resnet(state_dict: Mapping[str, Tensor], target: Shapes) -> Conversion:
    """Keep the weights of a ResNet that a hybrid LambdaResNet has too.

    Args:
        state_dict: Keys of torchvision's ResNet, or of mmdet's ResNet, ResNetV1c
            or ResNetV1d.
        target: The shapes of the LambdaResNet. Its shortcuts start with average
            pooling, as in ResNetV1d, so torchvision's ``downsample.0`` and ``.1``
            (convolution and norm) become 1 and 2.
    """
    conversion = Conversion()
    pooled = any(
        re.fullmatch(r'layer\d\.\d+\.downsample\.2\.weight', key)
        for key in state_dict)
    for key, value in state_dict.items():
        new = key if pooled else re.sub(
            r'(?<=\.downsample\.)[01](?=\.)',
            lambda match: str(int(match[0]) + 1), key)
        if key.startswith(('fc.', 'head.')):
            conversion.skipped[key] = CLASSIFIER
        elif key.startswith(('conv1.', 'bn1.', 'stem.')) and (
                target.get(new) != value.shape):
            conversion.skipped[key] = STEM
        elif re.match(r'layer\d\.\d+\.conv2\.', key) and is_lambda(key, target):
            conversion.skipped[key] = LAMBDA
        elif new in target:
            conversion.take(key, new, value)
        else:
            conversion.skipped[key] = NO_PART
    return conversion


def is_lambda(key: str, target: Shapes) -> bool:
    """Return whether a key is of a block whose ``conv2`` is a lambda layer."""
    block = '.'.join(key.split('.')[:2])
    return f'{block}.conv2.qkv.weight' in target


# --------------------------------------------------------------- MobileNetV2


def map_mobilenet_v2(state_dict: Mapping[str, Tensor],
                     library: str = 'mmdet') -> Conversion:
    """Rename torchvision's MobileNetV2 for a library's backbone.

    Args:
        state_dict: The weights of torchvision.
        library: ``'mmdet'``, or ``'mmseg'``, whose backbone has no ``conv2``.

    Raises:
        ValueError: A key is not of torchvision's MobileNetV2.
    """
    conversion = Conversion()
    for key, value in state_dict.items():
        renamed = convert_mobilenet_v2({key: value}, library)
        if renamed:
            conversion.take(key, *renamed.popitem())
        else:
            conversion.skipped[key] = (
                CLASSIFIER if key.startswith('classifier.') else NO_CONV2)
    return conversion


def _foreign(key: str, net: str) -> ValueError:
    return ValueError(f'the key {key!r} is not of {net}')
