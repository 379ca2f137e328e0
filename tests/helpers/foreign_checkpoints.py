"""Checkpoints of other projects for the tests of the converter."""

import torch

from fpt_plugin.commands.convert_weights.command import parser, task_of
from helpers.reference_lambda_nets import DLi14Net, TimmNet

RESNET_50 = (3, 4, 6, 3)
DEEP_STEM = ((32, 3), (32, 3), (64, 3))


def command(name):
    """Return the subcommand that converts a lambda net."""
    return ['d-li14'] if name.startswith('d') else ['timm-lambda', '--arch', name]


def task(*words):
    return task_of(parser().parse_args([*words, 'IN', 'OUT']))


def build(name):
    """Build the reference implementation of a lambda net."""
    return DLi14Net() if name.startswith('d') else TimmNet(name)


def meta_state(name):
    """Return the keys and shapes of a reference implementation, without memory."""
    with torch.device('meta'):
        return build(name).state_dict()


def resnet_state(blocks, *, stem=((64, 7), ), average=False, groups=1, width=64,
                 basic=False, device='meta'):
    """Return random tensors under the keys of a ResNet.

    Args:
        blocks: Number of blocks in each stage.
        stem: Channels and kernel of the stem's convolutions: one is ``conv1``,
            several are ``stem.0``, ``stem.3``, ...
        average: Whether shortcuts start with an average pool, as in ResNet-D.
        groups: Groups of the 3x3 convolutions.
        width: Inner channels of the first stage.
        basic: Whether blocks have two 3x3 convolutions.
        device: 'meta' for shapes without values.
    """
    state = {}

    def layer(conv, norm, out, channels, kernel):
        state[f'{conv}.weight'] = torch.randn(
            out, channels, kernel, kernel, device=device)
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            state[f'{norm}.{part}'] = torch.rand(out, device=device)
        state[f'{norm}.num_batches_tracked'] = torch.tensor(7, device=device)

    channels = 3
    for i, (out, kernel) in enumerate(stem):
        names = ('conv1', 'bn1') if len(stem) == 1 else (
            f'stem.{3 * i}', f'stem.{3 * i + 1}')
        layer(*names, out, channels, kernel)
        channels = out
    for i, count in enumerate(blocks):
        inner = width * 2**i
        out = inner if basic else 256 * 2**i
        for j in range(count):
            at = f'layer{i + 1}.{j}.'
            layer(at + 'conv1', at + 'bn1', inner, channels, 3 if basic else 1)
            layer(at + 'conv2', at + 'bn2', inner, inner // groups, 3)
            if not basic:
                layer(at + 'conv3', at + 'bn3', out, inner, 1)
            if j == 0:
                layer(f'{at}downsample.{int(average)}',
                      f'{at}downsample.{int(average) + 1}', out, channels, 1)
            channels = out
    state['fc.weight'] = torch.rand(10, channels, device=device)
    state['fc.bias'] = torch.rand(10, device=device)
    return state
