"""Recognise the network of a state dict by its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

D_LI14 = "d-li14's LambdaResNet-50"
MOBILENET_V2 = "torchvision's MobileNetV2"

# timm's networks by the depths of our presets.
TIMM_NAMES = {
    '26t': "timm's lambda_resnet26t",
    '26rpt': "timm's lambda_resnet26rpt_256",
    '50ts': "timm's lambda_resnet50ts",
}
# By the blocks per stage, the lambda layers with a position convolution (stage.block,
# 0-based), and those with a table of relative positions.
_TIMM_NETS = {
    ('2-2-2-2', '2.1 3.0 3.1', ''): TIMM_NAMES['26t'],
    ('2-2-2-2', '', '2.1 3.0 3.1'): TIMM_NAMES['26rpt'],
    ('3-4-6-3', '1.3 2.1 2.3 2.5 3.1', ''): TIMM_NAMES['50ts'],
}

RESNET_DEPTHS = {
    '3-4-6-3': 50,
    '3-4-23-3': 101,
    '3-8-36-3': 152,
    '3-24-36-3': 200,
    '4-29-53-4': 270,
    '4-36-72-4': 350,
    '4-44-87-4': 420,
}


def resnet_name(depth: int) -> str:
    """Return the name of the ResNet of a depth, as from :func:`name_of`."""
    blocks = {number: text for text, number in RESNET_DEPTHS.items()}[depth]
    return f'ResNet-{depth} ({blocks} blocks)'


def name_of(state_dict: Mapping[str, Tensor]) -> str:
    """Return the network of a state dict, or a description of its keys."""
    for recognise in (_timm, _resnet, _mobilenet):
        name = recognise(state_dict)
        if name is not None:
            return name
    some = ', '.join(list(state_dict)[:3])
    return f'an unknown net with keys such as {some}'


def command_for(name: str) -> str | None:
    """Return the subcommand of convert_weights for a network."""
    for arch, net in TIMM_NAMES.items():
        if name == net:
            return f'timm-lambda --arch {arch}'
    for depth in RESNET_DEPTHS.values():
        if name == resnet_name(depth):
            return f'torchvision-resnet --depth {depth}'
    return {D_LI14: 'd-li14', MOBILENET_V2: 'torchvision-mobilenetv2'}.get(name)


def _timm(state_dict: Mapping[str, Tensor]) -> str | None:
    blocks = _blocks(state_dict, r'stages\.(\d+)\.(\d+)\.conv1_1x1\.conv\.weight')
    if not blocks:
        return None
    kinds = [
        ' '.join(
            match[1] for key in state_dict
            if (match := re.fullmatch(rf'stages\.(\d+\.\d+)\.self_attn\.{kind}',
                                      key)))
        for kind in (r'conv_lambda\.weight', 'pos_emb')
    ]
    known = _TIMM_NETS.get((blocks, *kinds))
    if known is not None:
        return known
    blocks_with = ' '.join(filter(None, kinds))
    layers = f'lambda layers at {blocks_with}' if blocks_with else 'no lambda layers'
    return f"another of timm's nets ({blocks} blocks, {layers})"


def _resnet(state_dict: Mapping[str, Tensor]) -> str | None:
    blocks = _blocks(state_dict, r'layer(\d+)\.(\d+)\.conv1\.weight')
    if not blocks:
        return None
    if any('.conv2.qkv.' in key for key in state_dict):
        return f"fpt_plugin's LambdaResNet ({blocks} blocks), converted already"
    lambdas = sum(key.endswith('.conv2.conv_qkv.weight') for key in state_dict)
    if lambdas:
        in_all_blocks = lambdas == sum(map(int, blocks.split('-')))
        if in_all_blocks and blocks == '3-4-6-3':
            return D_LI14
        return (f"another of d-li14's LambdaResNets ({blocks} blocks, "
                f'{lambdas} of them lambda)')
    if not any(key.endswith('.conv3.weight') for key in state_dict):
        return f'a ResNet of basic blocks ({blocks})'
    conv1 = _shape(state_dict, 'layer1.0.conv1.weight')
    conv2 = _shape(state_dict, 'layer1.0.conv2.weight')
    if conv1 and conv2 and conv2[1:2] != conv1[:1]:  # grouped convolution
        return f'a ResNeXt ({blocks} blocks)'
    if conv1 and conv1[0] != 64:
        return f'a ResNet of another width ({conv1[0]}, {blocks} blocks)'
    depth = RESNET_DEPTHS.get(blocks)
    return f'a ResNet of {blocks} blocks' if depth is None else resnet_name(depth)


def _mobilenet(state_dict: Mapping[str, Tensor]) -> str | None:
    own = ('features.0.0.weight', 'features.2.conv.0.0.weight',
           'features.2.conv.2.weight')
    return MOBILENET_V2 if all(key in state_dict for key in own) else None


def _blocks(state_dict: Mapping[str, Tensor], pattern: str) -> str:
    """Return the blocks of each stage, such as 3-4-6-3; '' if no key matches."""
    stages: dict[int, int] = {}
    for key in state_dict:
        if match := re.fullmatch(pattern, key):
            stage, block = int(match[1]), int(match[2])
            stages[stage] = max(stages.get(stage, 0), block + 1)
    return '-'.join(str(stages[stage]) for stage in sorted(stages))


def _shape(state_dict: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    return tuple(state_dict[key].shape) if key in state_dict else ()
