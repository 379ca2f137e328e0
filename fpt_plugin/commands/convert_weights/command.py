"""The convert_weights command: convert weights of other projects for backbones.

The new file is for ``init_cfg=dict(type='Pretrained', checkpoint=OUT)`` of the
backbone. A checkpoint of another network is refused, not loaded in part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...io.checkpoints import (
    UNWRITABLE,
    Weights,
    read_weights,
    some,
    summarised,
    write_weights,
)
from ...io.files import check_writable
from ...openmmlab.pins import SCOPES
from ..common import add_cfg_options
from ..console import print_lines
from .key_maps import (
    Conversion,
    Shapes,
    is_lambda,
    map_d_li14,
    map_mobilenet_v2,
    map_resnet,
    map_timm_lambda,
)
from .nets import (
    D_LI14,
    MOBILENET_V2,
    RESNET_DEPTHS,
    TIMM_NAMES,
    command_for,
    name_of,
    resnet_name,
)
from .pretrained import Transfer, convert_pretrained

ERRORS = (ImportError, OSError, ValueError)

OUTSIDE = 'not of the backbone'


@dataclass(frozen=True)
class Task:
    """A subcommand with its options.

    Attributes:
        command: The subcommand with its options, for messages.
        net: The network that it converts, as :func:`~.nets.name_of` names it.
        backbone: The config of the backbone that gets the weights.
        convert: Function from a state dict and the backbone's shapes to a
            :class:`Conversion`.
        may_lack: Function that returns whether a key of the backbone may be
            missing in the checkpoint.
    """

    command: str
    net: str
    backbone: dict
    convert: Callable[[Mapping[str, Tensor], Shapes], Conversion]
    may_lack: Callable[[str, Shapes], bool]


@dataclass(frozen=True)
class Report:
    """Result of a conversion.

    Attributes:
        task: The subcommand.
        source: The checkpoint.
        out: The file that was written.
        container_key: The checkpoint's key that had the weights.
        unread: Keys of other state dicts in it.
        mapped: New keys by old keys.
        skipped: Reasons by old keys.
        new: Keys of the backbone without a source.
        shapes: Shapes by all keys of the backbone.
    """

    task: Task
    source: Path
    out: Path
    container_key: str
    unread: tuple[str, ...]
    mapped: dict[str, str]
    skipped: dict[str, str]
    new: tuple[str, ...]
    shapes: Shapes

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        old = [*self.mapped, *self.skipped]
        container = f', its {self.container_key}' if self.container_key else ''
        unread = f" (not its {', '.join(self.unread)})" if self.unread else ''
        lines = [
            f'read      {self.source}{container}{unread}: {self.task.net}',
            f'mapped    {len(self.mapped)} of {len(old)} keys',
        ]
        reasons: dict[str, list[str]] = {}
        for key, why in self.skipped.items():
            reasons.setdefault(why, []).append(key)
        for why, keys in reasons.items():
            lines.append(f'skipped   {len(keys)}, {why}: '
                         f"{', '.join(summarised(keys, old))}")
        new = ', '.join(summarised(self.new, self.shapes)) or 'nothing'
        lines.append(f'no source {len(self.new)} of {len(self.shapes)} keys of '
                     f'the backbone: {new}')
        options = ', '.join(f'{k}={v!r}' for k, v in self.task.backbone.items())
        lines += [
            f'written   {self.out}, for',
            f'backbone=dict({options},',
            f"    init_cfg=dict(type='Pretrained', checkpoint={str(self.out)!r}))"
        ]
        return lines


# ------------------------------------------------------------------ subcommands


def timm_lambda(arch: str) -> Task:
    """Convert timm's lambda_resnet26t, 26rpt_256 or 50ts for the preset ``arch``."""
    return Task(f'timm-lambda --arch {arch}', TIMM_NAMES[arch],
                dict(type='LambdaResNet', depth=arch),
                lambda state_dict, _: map_timm_lambda(state_dict), _is_counter)


def d_li14() -> Task:
    """Convert d-li14's LambdaResNet-50 for the preset of its name."""
    return Task('d-li14', D_LI14, dict(type='LambdaResNet', depth='d-li14-50'),
                lambda state_dict, _: map_d_li14(state_dict), _is_counter)


def torchvision_resnet(depth: int = 50) -> Task:
    """Convert the convolutions of a ResNet for the hybrid LambdaResNet."""
    return Task(
        f'torchvision-resnet --depth {depth}', resnet_name(depth),
        dict(type='LambdaResNet', depth=depth), map_resnet,
        lambda key, shapes: _is_counter(key, shapes) or key.startswith('stem.')
        or (key.split('.')[2] == 'conv2' and is_lambda(key, shapes)))


def torchvision_mobilenetv2(library: str = 'mmdet') -> Task:
    """Convert torchvision's MobileNetV2 for the backbone of a library."""
    return Task(f'torchvision-mobilenetv2 --host {library}', MOBILENET_V2,
                dict(type=f'{library}.MobileNetV2'),
                lambda state_dict, _: map_mobilenet_v2(state_dict, library),
                _is_counter)


def _is_counter(key: str, _: Shapes) -> bool:
    """Return whether it is a norm's counter, which old checkpoints lack."""
    return key.endswith('.num_batches_tracked')


# --------------------------------------------------------------------- converting


def convert_weights(task: Task, source: str | Path, out: str | Path) -> Report:
    """Convert a checkpoint and write the result. On an error nothing is written.

    Args:
        task: The conversion.
        source: The checkpoint.
        out: The file to write. Its folder is created if it is missing.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: ``source`` is no checkpoint, or of another network; ``out`` is
            the same file or has a suffix that is not allowed; or the library of
            the backbone is not installed.
    """
    source, out = Path(source), Path(out)
    check_writable(out, refused=UNWRITABLE, read=[source])
    weights = read_weights(source)
    shapes = shapes_of(task.backbone)
    conversion = converted(task, weights, shapes)
    new = tuple(key for key in shapes if key not in conversion.state_dict)
    write_weights(conversion.state_dict, out)
    return Report(
        task=task,
        source=source,
        out=out,
        container_key=weights.container_key,
        unread=tuple(weights.unread),
        mapped={old: key for key, old in conversion.sources.items()},
        skipped={
            **conversion.skipped,
            **dict.fromkeys(weights.outside, OUTSIDE)
        },
        new=new,
        shapes=shapes)


def converted(task: Task, weights: Weights, shapes: Shapes) -> Conversion:
    """Map the keys, and compare the result with the backbone.

    Raises:
        ValueError: The weights, or some of them, are of another network.
    """
    found = name_of(weights.state_dict)
    if found != task.net:
        command = command_for(found)
        hint = f'; use {command}' if command else ''
        raise ValueError(f'{task.command} needs {task.net}, got {found}{hint}')
    conversion = task.convert(weights.state_dict, shapes)
    for key, value in conversion.state_dict.items():
        old = conversion.sources[key]
        if key not in shapes:
            raise ValueError(f'{task.command} needs {task.net}, which has no key '
                             f'{old}: the backbone has no {key}')
        if value.shape != shapes[key]:
            raise ValueError(
                f'{task.command}: {old} has the shape '
                f'{tuple(weights.state_dict[old].shape)}, which does not give '
                f'the {tuple(shapes[key])} of {key}')
    missing = [
        key for key in shapes
        if key not in conversion.state_dict and not task.may_lack(key, shapes)
    ]
    if missing:
        raise ValueError(f'{task.command} needs {task.net}, got one without '
                         f'{len(missing)} of its tensors: nothing for '
                         f'{some(summarised(missing, shapes), 5)}')
    return conversion


def shapes_of(backbone: dict) -> dict[str, torch.Size]:
    """Return the shapes of a backbone's state dict, built on the meta device.

    Raises:
        ValueError: Its library is not installed.
    """
    library = backbone['type'].rpartition('.')[0]
    if library and find_spec(library) is None:
        raise ValueError(f'{library} is not installed: its backbone cannot be '
                         'compared with the weights')
    with torch.device('meta'):
        model = MODELS.build(dict(backbone))
    return {key: value.shape for key, value in model.state_dict().items()}


# ------------------------------------------------------------------------ command


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        description='Convert weights of other projects for our backbones and for '
        'the MobileNetV2 of mmdet and mmseg, and weights of pre-training for a '
        'detector or segmentor. IN is a state dict written by torch.save, bare or '
        'under state_dict, model or state_dict_ema, or a .safetensors file; '
        "OUT is for init_cfg=dict(type='Pretrained', checkpoint=OUT) of the "
        'backbone.')
    commands = parser.add_subparsers(dest='command', required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('source', metavar='IN', help='checkpoint to read')
        command.add_argument('out', metavar='OUT', help='file to write')
        return command

    add('timm-lambda', "timm's lambda_resnet26t, lambda_resnet26rpt_256 and "
        'lambda_resnet50ts').add_argument(
            '--arch',
            required=True,
            choices=list(TIMM_NAMES),
            help='the network, and depth of the LambdaResNet')
    add('d-li14', 'LambdaResNet-50 of d-li14/lambda.pytorch')
    add(
        'torchvision-resnet',
        'the convolutions of a ResNet (keys of torchvision, or of ResNet or '
        'ResNetV1d of mmdet; the stride in the 3x3) for a hybrid LambdaResNet'
    ).add_argument(
        '--depth',
        type=int,
        default=50,
        choices=list(RESNET_DEPTHS.values()),
        help='depth of both (default: 50)')
    add('torchvision-mobilenetv2',
        "torchvision's MobileNetV2 for a library's backbone").add_argument(
            '--host',
            default='mmdet',
            choices=SCOPES,
            help='library of the backbone (default: mmdet)')
    pretrained = add(
        'pretrained', 'backbone, neck and decode head of a pre-training, such as '
        "GreenMIM's, for the model of a config")
    pretrained.add_argument(
        '--into',
        required=True,
        metavar='CONFIG',
        help='config of the detector or segmentor')
    pretrained.add_argument(
        '--onto',
        metavar='TRAINED',
        help='trained checkpoint of that model with the plain pyramid, to add to '
        'OUT: its outputs stay the same, bit for bit. It needs a pre-training with '
        'keep_identity=True')
    add_cfg_options(pretrained)
    return parser


def task_of(args: argparse.Namespace) -> Task:
    """Return the task of the parsed arguments."""
    if args.command == 'timm-lambda':
        return timm_lambda(args.arch)
    if args.command == 'd-li14':
        return d_li14()
    if args.command == 'torchvision-resnet':
        return torchvision_resnet(args.depth)
    return torchvision_mobilenetv2(args.host)


def main(args: argparse.Namespace) -> Report | Transfer:
    """Run the command."""
    if args.command == 'pretrained':
        report = convert_pretrained(
            args.source, args.out, args.into, args.cfg_options, args.onto)
    else:
        report = convert_weights(task_of(args), args.source, args.out)
    print_lines(report.lines())
    return report
