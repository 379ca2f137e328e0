"""Parameters, multiply-adds and activation memory of a model, part by part.

The convention:

- **MACs** are the multiply-adds of matrix products, convolutions and
  attention in a forward pass in evaluation mode. A multiplication with its
  addition is one MAC, half of torch's count of FLOPs. Norms, activations,
  softmax, pooling, interpolation and other elementwise work are not counted.
  FPT's attention counts N Lq Lk d for the scores of N parts and Lq Lk C for the
  product with the values, independent of the order of computation. Work after
  the heads' forward is not counted: NMS, and the masks that RTMDet-Ins, SOLOv2
  or YOLACT assemble from their detections. RoI heads receive the config's
  numbers of proposals and detections.
- **Saved for backward** are the bytes of the tensors that autograd keeps in a
  forward pass in training mode, in float32, with indices and masks. Each storage
  counts once, in full, for the part that saves it first. Parameters, buffers,
  losses, the optimiser and tensors that are freed before the backward pass do
  not count. Operations of mmcv count as they run without a GPU: deformable
  attention saves its samples, on a GPU only its inputs. FPT's attention saves
  its operands; on a CPU it also saves the scores of small maps.
- **Parameters** count once, for the innermost part that has them.

If the model allows it, the passes run on tensors without data, so that a large
model at full resolution takes seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from torch import Tensor, nn

from ...io.files import check_writable, write_json
from ...layers.checks import check_positive_int
from ...necks import FPT
from ...openmmlab.models import image_channels, unwrapped
from ...pretraining.masked_image_model import MaskedImageModel
from ..common import (
    add_cfg_options,
    add_config,
    add_shape,
    image_shape,
    load_model,
    positive_int,
)
from .forward import (
    Attempts,
    RoICounts,
    has_plain_roi_head,
    run_model,
)
from .measurement import Label, Measurement
from .report import CONVENTION, Complexity

ERRORS = (KeyError, OSError, SyntaxError, ValueError)

# The branches of FPT, by the attributes that hold them.
BRANCHES = dict(
    self_transformers='ST',
    grounding_transformers='GT',
    rendering_transformers='RT',
    fusions='fusion',
    drop_blocks='fusion')


def complexity(config: str | Path | Config | nn.Module,
               shape: Sequence[int] | None = None,
               batch: int = 1,
               cfg_options: dict | None = None) -> Complexity:
    """Count a detector or segmentor, with or without FPT.

    Args:
        config: A config, its file, ``mmdet::`` or ``mmseg::`` and a file of
            that library's configs, or a model, which is not changed.
        shape: Height and width of the images; None: 800x1344 for a detector,
            the crop size for a segmentor.
        batch: Number of images.
        cfg_options: Settings that override the config's.

    Returns:
        The parts ``backbone``, ``pyramid`` (the neck, without FPT), ``fpt``
        (without the pyramid it wraps) and the model's heads by their names.

    Raises:
        FileNotFoundError: There is no such config.
        TypeError: A number is not an int.
        ValueError: A number is out of range, the config has no model, the
            model has no backbone, or the crop size is unknown.
    """
    check_positive_int('batch', batch)
    cfg = None
    if isinstance(config, nn.Module):
        model = config
    else:
        model, cfg = load_model(config, cfg_options)
    model = unwrapped(model)
    height, width = image_shape(model, cfg, shape)
    images = (batch, image_channels(model), height, width)
    notes = []
    if has_plain_roi_head(model):
        notes.append(str(RoICounts.of(model)))
    elif getattr(model, 'roi_head', None) is not None:
        notes.append('RoI heads receive the proposals of the current weights')

    def run(twin: nn.Module, make: Callable[..., Tensor]) -> list[str]:
        return run_model(twin, make(images))

    return _result(Measurement(model, model_labels, run), (images, ), notes)


def neck_complexity(neck: nn.Module,
                    shapes: Sequence[Sequence[int]],
                    batch: int = 1) -> Complexity:
    """Count a neck without a model.

    Args:
        neck: FPT or any other neck; it is not changed.
        shapes: (C, H, W) of each backbone map.
        batch: Number of images.

    Returns:
        The parts ``pyramid`` (the neck, without FPT) and ``fpt`` (without the
        pyramid it wraps). The maps require gradients, and count for the part
        that saves them first.

    Raises:
        TypeError: ``neck`` is not a module, or a number is not an int.
        ValueError: A number or a shape is out of range.
    """
    if not isinstance(neck, nn.Module):
        raise TypeError('neck must be a torch.nn.Module, got '
                        f'{type(neck).__name__}')
    check_positive_int('batch', batch)
    if not shapes:
        raise ValueError('shapes must have (C, H, W) of each map, got none')
    for shape in shapes:
        if len(shape) != 3:
            raise ValueError('shapes must be (C, H, W) of each map, got '
                             f'{tuple(shape)}')
        for number in shape:
            check_positive_int('shapes', number)
    inputs = tuple((batch, *shape) for shape in shapes)

    def run(twin: nn.Module, make: Callable[..., Tensor]) -> list[str]:
        attempt = Attempts()
        attempt(twin, tuple(make(shape).requires_grad_() for shape in inputs))
        return attempt.errors

    return _result(Measurement(neck, neck_labels, run), inputs, [])


def model_labels(model: nn.Module) -> dict[nn.Module, Label]:
    """Label each child of a model, and each head of a RoI head, as a part."""
    labels: dict[nn.Module, Label] = {}
    for name, child in model.named_children():
        if name == 'neck':
            labels.update(neck_labels(child))
            continue
        labels[child] = Label(name)
        if isinstance(model, MaskedImageModel):  # calls submodules of its parts
            labels.update(dict.fromkeys(child.modules(), Label(name)))
        if name == 'roi_head':
            labels.update((head, Label(f'{name}.{inner}'))
                          for inner, head in child.named_children())
    for module, label in list(labels.items()):
        if isinstance(module, nn.ModuleList):  # it has no forward of its own
            labels.update((item, label) for item in module)
    return labels


def neck_labels(neck: nn.Module) -> dict[nn.Module, Label]:
    """Label the pyramid and every FPT in the neck with its branches."""
    labels = {neck: Label('pyramid')}
    for fpt in neck.modules():
        if not isinstance(fpt, FPT):
            continue
        labels[fpt] = Label('fpt', 'rest')
        if fpt.pyramid is not None:
            labels[fpt.pyramid] = Label('pyramid')
        for attribute, branch in BRANCHES.items():
            layers = getattr(fpt, attribute)
            for name, layer in layers.named_children() if layers else ():
                # A fusion is named by its level, a layer by level_source.
                level = int(name.split('_')[0])
                labels[layer] = Label('fpt', branch, level)
    return labels


def _result(measurement: Measurement, inputs: tuple[tuple[int, ...], ...],
            notes: list[str]) -> Complexity:
    parts = measurement.parts(lambda label: Label(label.part))
    if {Label('fpt'), Label('pyramid')} <= set(parts):
        # FPT is the outer module, but its pyramid comes first.
        order = [label for label in parts if label != Label('fpt')]
        order.insert(order.index(Label('pyramid')) + 1, Label('fpt'))
        parts = {label: parts[label] for label in order}
    missing = measurement.missing(parts)
    branches = measurement.parts(lambda label: label)
    return Complexity(
        model=type(measurement.model).__name__,
        inputs=inputs,
        parts=tuple(parts.values()),
        branches=tuple(b for label, b in branches.items() if label.branch),
        notes=(*notes, *measurement.notes,
               *(f'{name} runs only in training'
                 for name in measurement.training_only(parts))),
        not_counted=tuple(missing))


def parser() -> argparse.ArgumentParser:
    """Build the parser of tools/complexity.py."""
    parser = argparse.ArgumentParser(
        description='Parameters, multiply-adds and activation memory of a '
        'detector or segmentor, part by part. ' + CONVENTION)
    add_config(parser)
    add_shape(parser, 'height and width of the images (default: 800 1344 for a '
              'detector, the crop size for a segmentor)')
    parser.add_argument(
        '--batch',
        type=positive_int,
        default=1,
        help='number of images (default: 1)')
    parser.add_argument(
        '--per-level',
        action='store_true',
        help="show each level of FPT's branches")
    parser.add_argument('--json', help='file to write the numbers to')
    add_cfg_options(parser)
    return parser


def main(args: argparse.Namespace) -> Complexity:
    """Print the table and write the JSON."""
    if args.json is not None:
        check_writable(args.json, suffixes=['.json'], read=[args.config],
                       name='--json')
    result = complexity(args.config, args.shape, args.batch, args.cfg_options)
    Console().print(result.table(args.per_level))
    if args.json is not None:
        write_json(args.json, result.to_dict())
    return result
