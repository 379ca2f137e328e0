"""The graft command: plan a graft, prove it, write it, show its costs."""

from __future__ import annotations

import argparse

from mmengine.config import DictAction

from ...openmmlab.models import load_config
from ..common import add_cfg_options, add_config, add_shape, positive_int
from ..console import print_lines, wide_console
from .backbone import DEPTHS
from .costs import costs
from .neck import NECKS, PRESETS
from .planning import Options, Plan, plan
from .proving import prove_plan
from .writing import Files

ERRORS = (ImportError, KeyError, OSError, RuntimeError, SyntaxError, TypeError,
          ValueError)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        description='Put FPT into the neck of any detector or segmentor, or '
        'lambda layers into its ResNet; prove that the outputs do not change '
        'before training; show the cost; write a short config.')
    add_config(parser)
    _add_graft(parser)
    _add_training(parser)
    _add_output(parser)
    add_cfg_options(parser)
    return parser


def _add_graft(parser: argparse.ArgumentParser) -> None:
    neck = parser.add_argument_group('neck')
    neck.add_argument(
        '--neck',
        choices=NECKS,
        help='default: FPT; SelfTransformerNeck where the neck returns one map')
    neck.add_argument(
        '--preset',
        choices=PRESETS,
        help="FPT's branches and their width, from cheap to expensive (default: "
        "FPT's own, which is not written into the config)")
    neck.add_argument(
        '--levels',
        type=positive_int,
        metavar='N',
        help='transform the N finest maps (default: those made from backbone maps)')
    neck.add_argument(
        '--key-strides',
        nargs='+',
        type=positive_int,
        metavar='S',
        help='pooling of keys, one for all levels or one per level')
    neck.add_argument(
        '--neck-options',
        nargs='+',
        action=DictAction,
        default={},
        help='other arguments of FPT, as key=value')
    backbone = parser.add_argument_group(
        'backbone', 'without --neck, these options do not change the neck')
    backbone.add_argument(
        '--backbone',
        metavar='lambda-resnetN',
        help='replace the ResNet by a LambdaResNet of the same depth: '
        f'{", ".join(map(str, DEPTHS))}')
    backbone.add_argument(
        '--lambda-plugins',
        action='store_true',
        help='add lambda layers with gates that start at zero, in C4 and C5')


def _add_training(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group('training')
    training.add_argument(
        '--checkpoint',
        help='weights of the plain model, for the proof and for load_from of the '
        'new config')
    training.add_argument(
        '--write-checkpoint',
        action='store_true',
        help='with --backbone: convert the checkpoint to a file beside --out')
    training.add_argument(
        '--train-neck-only',
        action='store_true',
        help='train only the grafted modules and freeze the others')
    training.add_argument(
        '--lr-mult',
        type=float,
        metavar='X',
        help='factor of the learning rate of the grafted modules')


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group('output')
    output.add_argument('--out', help='the new config (default: print it)')
    output.add_argument(
        '--force', action='store_true', help='replace existing files')
    output.add_argument('--json', help='file for the comparison and the costs')
    output.add_argument(
        '--no-proof', action='store_true', help='do not compare the outputs')
    output.add_argument(
        '--no-costs', action='store_true', help='do not measure the costs')
    add_shape(output, 'size of the image for the costs (default: 800 1344 for a '
              'detector, the crop size for a segmentor)')
    output.add_argument(
        '--repeats',
        type=positive_int,
        default=5,
        help='number of timed forward passes (default: 5)')


def options_of(args: argparse.Namespace, load_from: str | None) -> Options:
    """Convert the command's arguments to options of a graft."""
    strides = args.key_strides
    return Options(
        neck=args.neck,
        levels=args.levels,
        key_strides=strides[0] if strides and len(strides) == 1 else strides,
        preset=args.preset,
        neck_options=args.neck_options,
        backbone=args.backbone,
        lambda_plugins=args.lambda_plugins,
        train_neck_only=args.train_neck_only,
        lr_mult=args.lr_mult,
        load_from=load_from)


def main(args: argparse.Namespace) -> Plan:
    """Run the command.

    Raises:
        OSError: A file cannot be read or written.
        RuntimeError: A model does not build or run.
        ValueError: The model cannot take the graft, the graft changes its
            outputs, or an argument does not fit.
    """
    console = wide_console()
    files = Files(args)
    options = options_of(args, files.load_from)
    base = load_config(args.config)
    plain = load_config(args.config, args.cfg_options) \
        if args.cfg_options else base
    made = plan(plain, options)
    print_lines(made.notes, console)
    text = files.text_of(base, made)
    weights = files.read_weights(plain, made, console)
    proof = None if args.no_proof else prove_plan(
        plain, made, options, weights, args.checkpoint, console)
    files.write(text, made, weights, console)
    spent = None
    if not args.no_costs:
        spent = costs(plain, made.cfg, args.shape, args.repeats)
        console.print(spent.table())
    files.write_figures(made, proof, spent)
    return made
