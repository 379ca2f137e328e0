"""What tools/graft.py does: a graft, its proof, its costs and its config."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config, DictAction
from rich.console import Console

from ...io.checkpoints import (
    Weights,
    check_out,
    fetch_state_dict,
    read_state_dict,
    write_weights,
)
from ...io.files import write_json
from ...openmmlab.models import load_config
from ..common import positive_int
from ..convert_weights.command import summarised
from .backbone import DEPTHS, convert_backbones
from .costs import Costs, costs
from .neck import NECKS
from .planning import Options, Plan, plan
from .proof import Proof, prove
from .sites import Unbuildable
from .sweep import LIBRARIES, Record, summary, sweep
from .text import (
    base_name,
    check_new,
    check_text,
    config_text,
    write_config,
)
from .weights import build_model, load_weights

ERRORS = (ImportError, KeyError, OSError, RuntimeError, SyntaxError, TypeError,
          ValueError)
INTERRUPTED = 'a sweep goes on with --resume'


def parser() -> argparse.ArgumentParser:
    """The flags of tools/graft.py."""
    parser = argparse.ArgumentParser(
        description='Put FPT into the neck of any detector or segmentor, or '
        'lambda layers into its ResNet; prove that the model is unchanged '
        'until it is trained; show what it costs; write a short config.')
    parser.add_argument(
        'config',
        nargs='?',
        help='config file, or mmdet:: or mmseg:: and a file of that '
        "library's configs")
    neck = parser.add_argument_group('neck')
    neck.add_argument(
        '--neck',
        choices=NECKS,
        help='default: FPT; SelfTransformerNeck where the neck returns one map')
    neck.add_argument(
        '--levels',
        type=positive_int,
        metavar='N',
        help='transform the N finest maps (default: those of backbone maps)')
    neck.add_argument(
        '--key-strides',
        nargs='+',
        type=positive_int,
        metavar='S',
        help='pooling of keys, one for all levels or one a level')
    neck.add_argument(
        '--neck-options',
        nargs='+',
        action=DictAction,
        default={},
        help="other arguments of FPT's, as key=value")
    backbone = parser.add_argument_group(
        'backbone', 'without --neck these leave the neck as it is')
    backbone.add_argument(
        '--backbone',
        metavar='lambda-resnetN',
        help='a LambdaResNet for the ResNet of its depth: '
        f'{", ".join(map(str, DEPTHS))}')
    backbone.add_argument(
        '--lambda-plugins',
        action='store_true',
        help='lambda layers behind gates that start at zero, in C4 and C5')
    training = parser.add_argument_group('training')
    training.add_argument(
        '--checkpoint',
        help='weights of the plain model: the proof takes them, and load_from '
        'of the new config names them')
    training.add_argument(
        '--write-checkpoint',
        action='store_true',
        help='with --backbone: convert the checkpoint to a file beside --out')
    training.add_argument(
        '--train-neck-only',
        action='store_true',
        help='train what is grafted alone, all else stays as it is')
    training.add_argument(
        '--lr-mult',
        type=float,
        metavar='X',
        help='factor of the learning rate of what is grafted')
    output = parser.add_argument_group('output')
    output.add_argument(
        '--out', help='the new config (default: it is printed), or with '
        '--sweep a file of JSON lines')
    output.add_argument(
        '--force', action='store_true', help='replace --out if it is there')
    output.add_argument('--json', help='file for the figures of both models')
    output.add_argument(
        '--no-proof', action='store_true', help='compare nothing')
    output.add_argument(
        '--no-costs', action='store_true', help='count and time nothing')
    output.add_argument(
        '--shape',
        nargs=2,
        type=positive_int,
        metavar=('H', 'W'),
        help='image of the costs (default: 800 1344 for a detector, the size '
        'of the crops for a segmentor)')
    output.add_argument(
        '--repeats',
        type=positive_int,
        default=5,
        help='turns of the clock (default: 5)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config first, as key=value')
    many = parser.add_argument_group('all configs of a library')
    many.add_argument(
        '--sweep',
        choices=LIBRARIES,
        help='graft every config that the library ships and compare')
    many.add_argument(
        '--limit', type=positive_int, metavar='N', help='the first N configs')
    many.add_argument(
        '--only', metavar='TEXT', help='configs with this in their path')
    many.add_argument(
        '--resume', action='store_true', help='go on with what --out has')
    return parser


def main(args: argparse.Namespace) -> Plan | list[Record]:
    """What tools/graft.py does.

    Raises:
        OSError: A file cannot be read or written.
        RuntimeError: A model does not build or run.
        ValueError: The model cannot take the graft, the graft changes its
            outputs, or a flag does not fit.
    """
    if (args.sweep is None) == (args.config is None):
        raise ValueError('name a config, or --sweep and a library')
    return _sweep(args) if args.sweep else _graft(args)


def _console() -> Console:
    """A log file has no width of its own; the costs need some."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    return console


def _options(args: argparse.Namespace, load_from: str | None) -> Options:
    strides = args.key_strides
    return Options(
        neck=args.neck,
        levels=args.levels,
        key_strides=strides[0] if strides and len(strides) == 1 else strides,
        neck_options=args.neck_options,
        backbone=args.backbone,
        lambda_plugins=args.lambda_plugins,
        train_neck_only=args.train_neck_only,
        lr_mult=args.lr_mult,
        load_from=load_from)


def _sweep(args: argparse.Namespace) -> list[Record]:
    console = _console()
    records = sweep(args.sweep, args.out, args.limit, args.resume, args.force,
                    args.only, _options(args, None), console)
    console.print(summary(args.sweep, records))
    return records


def _graft(args: argparse.Namespace) -> Plan:
    console = _console()
    if args.out is not None:
        check_new(args.out, args.config, args.force)
    if args.json is not None and Path(args.json).exists() and not args.force:
        raise FileExistsError(f'{args.json} is there already; --force replaces '
                              'it')
    converted = _converted_name(args)
    load_from = converted if args.backbone else args.checkpoint
    base = load_config(args.config)
    plain = load_config(args.config, args.cfg_options) \
        if args.cfg_options else base
    made = plan(plain, _options(args, load_from))
    for note in made.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    folder = Path(args.out).parent if args.out else Path()
    text = config_text(base, made.cfg, base_name(args.config, folder))
    if args.out is not None:
        check_text(text, made.cfg, folder)
    weights = None
    if args.checkpoint and not (args.no_proof and not args.backbone):
        weights = _read(args.checkpoint)
    proof = None
    if args.backbone and weights is not None:
        weights = _convert(weights, plain, made, args.checkpoint, console)
    if not args.no_proof:
        proof = _proof(args, plain, made, weights, console)
    _write(args, text, made, weights, converted, console)
    spent = None
    if not args.no_costs:
        spent = costs(plain, made.cfg, args.shape, args.repeats)
        console.print(spent.table())
    if args.json is not None:
        write_json(args.json, _figures(args, made, proof, spent))
    return made


def _proof(args: argparse.Namespace, plain: Config, made: Plan,
           weights: Weights | None, console: Console) -> Proof | None:
    options = _options(args, None)
    if args.backbone:
        console.print('The layers of a LambdaResNet are new: the model is not '
                      'what it was.')
        if not options.grafts_neck:
            return None
        console.print('FPT is compared with the same backbone without it.')
        plain = plan(plain, replace(options, neck=None, levels=None,
                                    key_strides=None, neck_options={},
                                    lr_mult=None)).cfg
    state_dict = None if weights is None else weights.state_dict
    try:
        proof = prove(plain, made.cfg,
                      None if args.backbone else state_dict, args.checkpoint)
    except Unbuildable as error:
        raise Unbuildable(f'{error}; --no-proof --no-costs write the config '
                          'without running it') from error
    console.print(proof.table())
    _require_identical(proof)
    return proof


def _require_identical(proof: Proof) -> None:
    if proof.identical and proof.effective is False:
        raise ValueError('no head reads the maps that the graft transforms, so '
                         'nothing was written: take other --levels, or a neck '
                         'whose maps heads read')
    if proof.identical:
        return
    different = [c.what for c in proof.comparisons if not c.equal]
    what = (f'changes {", ".join(different)}' if different else
            'could not be compared: nothing in the outputs could differ')
    raise ValueError(f'the graft {what}, so nothing was written; --no-proof '
                     "writes it (fusion='concat' does not start at zero)")


def _converted_name(args: argparse.Namespace) -> str | None:
    """The file of the converted checkpoint, where one is asked for."""
    if not args.write_checkpoint:
        return None
    if not (args.backbone and args.checkpoint and args.out):
        raise ValueError('--write-checkpoint needs --backbone, --checkpoint '
                         'and --out')
    name = Path(args.out).with_suffix('.pth')
    check_out(args.checkpoint, name)
    if name.exists() and not args.force:
        raise FileExistsError(f'{name} is there already; --force replaces it')
    return str(name)


def _read(checkpoint: str) -> Weights:
    if '://' in checkpoint:
        return fetch_state_dict(checkpoint)
    return read_state_dict(checkpoint)


def _convert(weights: Weights, plain: Config, made: Plan, source: str,
             console: Console) -> Weights:
    """The checkpoint for the LambdaResNet."""
    load_weights(build_model(plain), weights.state_dict, source)
    backbone = None
    for site in made.sites:
        node = made.cfg.model
        for key in site.path:
            node = node[key]
        backbone = node['backbone'].to_dict()
    state_dict, conversions = convert_backbones(weights.state_dict, backbone)
    model = build_model(made.cfg)
    result = model.load_state_dict(state_dict, strict=False)
    for prefix, conversion in conversions.items():
        old = [*conversion.sources.values(), *conversion.skipped]
        lines = [f'{prefix[:-1]}: kept {len(conversion.sources)} of {len(old)} '
                 f'tensors of {source}']
        for why in dict.fromkeys(conversion.skipped.values()):
            keys = [k for k, v in conversion.skipped.items() if v == why]
            lines.append(f'  left out, {why}: '
                         f'{", ".join(summarised(keys, old))}')
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    wanted = {key: value for key, value in model.state_dict().items()
              if not key.endswith('num_batches_tracked')}
    new = [key for key in result.missing_keys if key in wanted]
    count = sum(wanted[key].numel() for key in new)
    console.print(
        f'new, {count:,} numbers: {", ".join(summarised(new, wanted))}',
        markup=False, highlight=False, soft_wrap=True)
    return Weights(state_dict)


def _write(args: argparse.Namespace, text: str, made: Plan,
           weights: Weights | None, converted: str | None,
           console: Console) -> None:
    if args.out is None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    if converted is not None:
        write_weights(weights.state_dict, converted)
        console.print(f'written {converted}', highlight=False)
    elif args.backbone and args.checkpoint:
        console.print('load_from is not set: the checkpoint fits the '
                      'LambdaResNet when --write-checkpoint has converted it')
    write_config(text, made.cfg, args.out)
    console.print(f'written {args.out}', highlight=False)


def _figures(args: argparse.Namespace, made: Plan, proof: Proof | None,
             spent: Costs | None) -> dict:
    return dict(
        config=args.config,
        notes=list(made.notes),
        identical=None if proof is None else proof.identical,
        comparisons=[] if proof is None else
        [vars(c) for c in proof.comparisons],
        costs=None if spent is None else spent.to_dict())
