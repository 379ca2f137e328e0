"""The export command: export backbone and neck of a config and its checkpoint."""

from __future__ import annotations

import argparse

from ...io.checkpoints import read_state_dict
from ...io.files import check_writable
from ..common import (
    add_cfg_options,
    add_config,
    add_shape,
    load_model,
    load_weights,
    positive_int,
)
from ..console import print_lines
from .graph import FORMATS, LONGEST, OPSET, SHORTEST, Export, export

ERRORS = (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        description='Write backbone and neck of a detector or segmentor as ONNX, '
        'or as a program of torch.export, and compare the file with torch at two '
        'sizes. The input is one normalised image (1, 3, H, W), the outputs are '
        'the maps of the neck; heads and NMS are not included.')
    add_config(parser)
    parser.add_argument('checkpoint', help="checkpoint; 'none' for random weights")
    parser.add_argument('out', help='.onnx or .pt2 file to write')
    add_shape(parser, 'height and width to capture the graph at (default: 256 320)',
              default=(256, 320))
    parser.add_argument(
        '--divisor',
        type=positive_int,
        default=32,
        help='height and width of all images must be multiples of it '
        '(default: 32)')
    parser.add_argument(
        '--fixed', action='store_true', help='take only images of --shape')
    parser.add_argument(
        '--opset',
        type=positive_int,
        default=OPSET,
        help=f'version of the operators of ONNX (default: {OPSET})')
    parser.add_argument(
        '--force', action='store_true', help='replace an existing file')
    add_cfg_options(parser)
    return parser


def main(args: argparse.Namespace) -> Export:
    """Run the command."""
    check_writable(args.out, suffixes=FORMATS, force=args.force)
    model, _ = load_model(args.config, args.cfg_options)
    if args.checkpoint != 'none':
        load_weights(model, read_state_dict(args.checkpoint).state_dict,
                     args.checkpoint, heads=False)
    result = export(
        model,
        args.out,
        args.shape,
        divisor=None if args.fixed else args.divisor,
        opset=args.opset,
        force=args.force)
    print_lines(lines(result))
    return result


def lines(result: Export) -> list[str]:
    """Return the lines of the report."""
    kind = 'torch.export' if result.opset is None else f'ONNX opset {result.opset}'
    sides = (
        f'{result.shape[0]}x{result.shape[1]} only' if result.divisor is None
        else f'multiples of {result.divisor} from {SHORTEST * result.divisor} to '
        f'{LONGEST * result.divisor}')
    channels = ', '.join(map(str, result.outputs))
    compared = [
        f'{height}x{width}  differs from torch by {error:.1e} of the largest '
        'value'
        for (height, width), error in result.differences.items()
    ] or ['not compared with torch: onnxruntime is not installed']
    return [
        f'{result.out}: {kind}, sides {sides}, maps of {channels} channels',
        *compared
    ]
