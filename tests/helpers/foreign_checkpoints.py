"""Checkpoints of other projects for the tests of the converter."""

import torch

from fpt_plugin.commands.convert_weights.command import parser, task_of
from helpers.reference_lambda_nets import DLi14Net, TimmNet

RESNET_50 = (3, 4, 6, 3)
DEEP_STEM = ((32, 3), (32, 3), (64, 3))


def command(name):
    """Return the subcommand that converts a lambda network."""
    return ['d-li14'] if name.startswith('d') else ['timm-lambda', '--arch', name]


def task(*words):
    return task_of(parser().parse_args([*words, 'IN', 'OUT']))


def build(name):
    """Build the reference implementation of a lambda network."""
    return DLi14Net() if name.startswith('d') else TimmNet(name)


def meta_state(name):
    """Return the state dict of a lambda network on the meta device."""
    with torch.device('meta'):
        return build(name).state_dict()


def resnet_state(blocks, *, stem=((64, 7), ), average=False, groups=1, width=64,
                 basic=False, device='meta'):
    """Return random tensors, or only shapes, with the keys of a ResNet.

    Args:
        blocks: Blocks per stage.
        stem: Channels and kernel of the stem's convolutions: one is ``conv1``,
            several are ``stem.0``, ``stem.3``, ...
        average: Whether shortcuts start with average pooling, as in ResNet-D.
        groups: Groups of the 3x3 convolutions.
        width: Inner width of the first stage.
        basic: Whether blocks have two 3x3 convolutions.
        device: 'meta' for shapes only.
    """
    state = {}

    def conv(name, out, channels, kernel):
        state[f'{name}.weight'] = torch.randn(
            out, channels, kernel, kernel, device=device)

    def norm(name, channels):
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            state[f'{name}.{part}'] = torch.rand(channels, device=device)
        state[f'{name}.num_batches_tracked'] = torch.tensor(7, device=device)

    channels = 3
    for i, (out, kernel) in enumerate(stem):
        conv('conv1' if len(stem) == 1 else f'stem.{3 * i}', out, channels, kernel)
        norm('bn1' if len(stem) == 1 else f'stem.{3 * i + 1}', out)
        channels = out
    for i, count in enumerate(blocks):
        inner = width * 2**i
        out = inner if basic else 256 * 2**i
        for j in range(count):
            at = f'layer{i + 1}.{j}'
            conv(f'{at}.conv1', inner, channels, 3 if basic else 1)
            norm(f'{at}.bn1', inner)
            conv(f'{at}.conv2', inner, inner // groups, 3)
            norm(f'{at}.bn2', inner)
            if not basic:
                conv(f'{at}.conv3', out, inner, 1)
                norm(f'{at}.bn3', out)
            if j == 0:
                conv(f'{at}.downsample.{int(average)}', out, channels, 1)
                norm(f'{at}.downsample.{int(average) + 1}', out)
            channels = out
    state['fc.weight'] = torch.rand(10, channels, device=device)
    state['fc.bias'] = torch.rand(10, device=device)
    return state
