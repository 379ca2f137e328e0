"""Checkpoints of other projects for the tests of the converter."""

import torch

from fpt_plugin.commands.convert_weights.command import parser, task_of
from helpers.reference_lambda_nets import DLi14Net, TimmNet

RESNET_50 = (3, 4, 6, 3)
DEEP_STEM = ((32, 3), (32, 3), (64, 3))


def command(name):
    """The subcommand that converts a lambda net."""
    return ['d-li14'] if name.startswith('d') else ['timm-lambda', '--arch', name]


def task(*words):
    return task_of(parser().parse_args([*words, 'IN', 'OUT']))


def build(name):
    """The statement of a lambda net."""
    return DLi14Net() if name.startswith('d') else TimmNet(name)


def meta_state(name):
    """The keys and shapes of a statement, without memory."""
    with torch.device('meta'):
        return build(name).state_dict()


def resnet_state(blocks, *, stem=((64, 7), ), average=False, groups=1, width=64,
                 basic=False, device='meta'):
    """Drawn tensors, or shapes alone, under the keys of a ResNet.

    Args:
        blocks: Blocks a stage.
        stem: Channels and kernel of the stem's convolutions: one is ``conv1``,
            several are ``stem.0``, ``stem.3``, ...
        average: Shortcuts begin with an average pool, as in ResNet-D.
        groups: Of the 3x3 convolutions.
        width: Of the first stage, inside.
        basic: Blocks of two 3x3 convolutions.
        device: 'meta' for shapes alone.
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
