"""The benchmark as a command: flags, table and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ...io.files import check_writable, write_bytes, write_json
from ...necks import presets
from . import alternatives, gpu, graft_zoo, levels, pretraining
from .cases import PRESETS, AttentionCase, LocalCase, NeckCase
from .lambdas import BackboneCase, LambdaCase
from .measuring import Case, environment, measure
from .segmentors import SegmentorCase
from .textures import TextureCase

ERRORS = (OSError, ValueError)

ATTENTION = ('st:P5', 'st:P4', 'gt:P4-P5', 'gt:P3-P4', 'gt:P2-P3@4', 'gt:P2-P5')
LOCAL = ('64x128', '97x97', '128x256')
# C4 and C5 of an 800x1344 image, and of a 512x1024 one at output stride 8.
LAMBDA = ('50x84x64', '25x42x128', '64x128x64', '64x128x128')
# Sides of image and reference: 160 in the paper's training, 600 in typical use.
TEXTURES = ('160x160', '600x600')
BACKBONES = ('50', '50-d8')
# Names that work from an installed wheel and from a checkout.
SEGMENTORS = (
    'fpt_plugin::fpt/fcn_r101-d8_ufp-fpt_4xb2-80k_cityscapes-769x769.py',
    'mmseg::fcn/fcn_r101-d8_4xb2-80k_cityscapes-769x769.py')

# Commands that also write a Markdown table.
TABLES = dict(
    alternatives=alternatives.markdown,
    levels=levels.markdown,
    pretraining=pretraining.markdown)


def parser() -> argparse.ArgumentParser:
    """Build the parser of tools/benchmark.py."""
    parser = argparse.ArgumentParser(
        description='Measure speed, memory and error side by side; '
        'benchmarks/README.md describes the method')
    commands = parser.add_subparsers(dest='command', required=True)
    attention = commands.add_parser(
        'attention', help='Self- and Grounding-Transformer')
    _add_cases(
        attention, ATTENTION,
        'st:P4, gt:P3-P4 (queries from P3, keys from P4) or gt:P2-P3@4 '
        '(keys pooled by 4)')
    local = commands.add_parser(
        'local-attention', help='Locality-constrained Grounding Transformer')
    _add_cases(
        local, LOCAL,
        'HxW of maps of one size, or HxW-hxw of a fine and a coarse map')
    local.add_argument('--window', type=int, default=5)
    neck = commands.add_parser(
        'neck', help='FPT compared with its ResNet-50 and FPN')
    neck.add_argument(
        '--preset', choices=sorted(PRESETS), nargs='+', default=['default'])
    neck.add_argument(
        '--only', action='store_true', help='measure only FPT')
    lambdas = commands.add_parser(
        'lambda', help='position lambdas of a lambda layer')
    _add_cases(
        lambdas, LAMBDA,
        'HxWxV: rows and columns of the map, depth of the values')
    for name, default in (('heads', 4), ('depth', 16), ('intra', 1),
                          ('window', 23)):
        lambdas.add_argument(f'--{name}', type=int, default=default)
    lambdas.add_argument(
        '--no-orders',
        action='store_true',
        help='leave out the orders of summation that are not selected')
    backbone = commands.add_parser(
        'backbone', help="LambdaResNet compared with mmdet's ResNet")
    _add_cases(
        backbone, BACKBONES,
        'depths: 50, 101, 152; with an output stride of 8: 50-d8')
    segmentor = commands.add_parser(
        'segmentor', help='inference of segmentors, on whole images and windows')
    segmentor.add_argument(
        '--configs',
        nargs='+',
        default=SEGMENTORS,
        metavar='CONFIG',
        help='configs to compare; the first one is the baseline')
    others = commands.add_parser(
        'alternatives', help='FPT and other necks in one Faster R-CNN R50')
    others.add_argument(
        '--rows', nargs='+', choices=tuple(alternatives.ALTERNATIVES),
        default=tuple(alternatives.ALTERNATIVES), metavar='NECK',
        help='some of: %(choices)s (default: all)')
    branches = commands.add_parser(
        'levels', help="each branch of each level of FPT's presets, compared "
        'with its plain formula')
    branches.add_argument(
        '--preset', choices=sorted(presets.PRESETS), nargs='+',
        default=levels.PRESETS)
    masked = commands.add_parser(
        'pretraining', help='steps of GreenMIM and SimMIM, and window packing')
    _add_cases(
        masked, pretraining.CASES,
        f'backbone ({", ".join(pretraining.CONFIGS)}) and side: t-224, b-448')
    textures = commands.add_parser('texture', help='texture transfer of TTSR')
    _add_cases(
        textures, TEXTURES,
        'HxW of an enlarged image and its reference, or HxW-HxW of both')
    textures.add_argument('--channels', type=int, default=64)
    gpu.add_flags(
        commands.add_parser(
            'gpu', help='all suites on one GPU in one run; '
            'benchmarks/gpu.sh runs the tests first'))
    gpu_table = commands.add_parser(
        'gpu-table', help='print the table of a result of gpu')
    gpu_table.add_argument('result', help='JSON file')
    graft_zoo.add_parser(commands)
    shapes = dict.fromkeys((attention, neck, others, branches), (800, 1344))
    shapes[segmentor] = 1024, 2048
    for command in (*shapes, backbone):
        command.add_argument(
            '--shape',
            type=int,
            nargs=2,
            default=shapes.get(command),
            metavar=('H', 'W'),
            help='pixels of the image; 512 1024 for Cityscapes')
    for command in (attention, local):
        command.add_argument('--channels', type=int, default=256)
        command.add_argument(
            '--paths', action='store_true',
            help='measure each path, besides the automatic choice')
    for command in (attention, local, neck, lambdas, backbone, segmentor,
                    others, branches, masked, textures):
        command.add_argument(
            '--batch', type=int, default=8 if command is masked else 1)
        command.add_argument('--repeats', type=int, default=7)
        command.add_argument(
            '--device', choices=('cpu', 'cuda'), default='cpu')
        command.add_argument(
            '--dtype',
            choices=('float32', 'bfloat16', 'float16', 'float64'),
            default='float32')
        command.add_argument('--threads', type=int, help="torch's by default")
        command.add_argument(
            '--limit-gib',
            type=float,
            default=8,
            help='skip candidates that would need more memory')
        only = command.add_mutually_exclusive_group()
        only.add_argument(
            '--no-memory', action='store_true', help='measure only times')
        only.add_argument(
            '--no-times', action='store_true', help='measure only memory')
        command.add_argument(
            '--out',
            help='JSON file; default: benchmarks/COMMAND-DEVICE-DTYPE.json')
    return parser


def _add_cases(command: argparse.ArgumentParser, default: tuple[str, ...],
               text: str) -> None:
    command.add_argument(
        '--cases', nargs='+', default=default, metavar='CASE', help=text)


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Make the cases from the flags.

    Raises:
        ValueError: A flag is out of range, or a case has an unknown form.
    """
    for name in ('batch', 'repeats', 'threads', 'channels', 'window', 'heads',
                 'depth', 'intra'):
        number = getattr(args, name, None)
        if number is not None and number < 1:
            raise ValueError(f'--{name} must be at least 1, got {number}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda needs a CUDA device, got a torch that '
                         'finds none')
    common = dict(device=args.device, dtype=args.dtype, batch=args.batch)
    if args.command == 'attention':
        return [
            AttentionCase.parse(
                text, tuple(args.shape), channels=args.channels,
                paths=args.paths, **common)
            for text in args.cases
        ]
    if args.command == 'local-attention':
        return [
            LocalCase.parse(
                text, channels=args.channels, window=args.window,
                paths=args.paths, **common)
            for text in args.cases
        ]
    if args.command == 'lambda':
        if args.window % 2 == 0:
            raise ValueError(f'--window must be odd, got {args.window}')
        return [
            LambdaCase.parse(
                text, heads=args.heads, depth=args.depth, intra=args.intra,
                window=args.window, orders=not args.no_orders, **common)
            for text in args.cases
        ]
    if args.command == 'backbone':
        return [
            BackboneCase.parse(
                text, args.shape and tuple(args.shape), **common)
            for text in args.cases
        ]
    if args.command == 'segmentor':
        return [
            SegmentorCase(
                name=mode, mode=mode, configs=tuple(args.configs),
                shape=tuple(args.shape), **common)
            for mode in ('whole', 'slide')
        ]
    if args.command == 'pretraining':
        return [pretraining.PretrainingCase.parse(text, **common)
                for text in args.cases]
    if args.command == 'texture':
        return [TextureCase.parse(text, channels=args.channels, **common)
                for text in args.cases]
    if args.command == 'alternatives':
        return alternatives.cases(args.rows, tuple(args.shape), **common)
    if args.command == 'levels':
        return levels.cases(args.preset, tuple(args.shape), **common)
    return [
        NeckCase(
            name=f'{preset} preset',
            shape=tuple(args.shape),
            preset=preset,
            only=args.only,
            **common) for preset in args.preset
    ]


def main(args: argparse.Namespace) -> Path | gpu.Result | list[graft_zoo.Record]:
    """Measure, print the table and write the JSON.

    Returns:
        The JSON file; for ``gpu`` also the failures; for ``graft-zoo`` the
        record of each config.
    """
    if args.command == 'gpu':
        return gpu.main(args)
    if args.command == 'gpu-table':
        print(gpu.markdown(gpu.read_result(args.result)), end='')
        return Path(args.result)
    if args.command == 'graft-zoo':
        return graft_zoo.main(args)
    cases = cases_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    out = Path(args.out or f'benchmarks/{args.command}-{args.device}-'
               f'{args.dtype}.json')
    check_writable(out, suffixes=['.json'], name='--out')
    # A log file has no terminal width.
    console = Console()
    if not console.is_terminal:
        console.width = 140
    with Progress(console=console) as progress:
        records = measure(cases, args.repeats, int(args.limit_gib * 2**30),
                          progress,
                          memory=not args.no_memory, times=not args.no_times)
    machine = environment(args.device)
    content = dict(
        command=args.command,
        repeats=args.repeats,
        environment=machine,
        records=records)
    if args.command == 'alternatives':
        content['counts'] = alternatives.counts(cases[0].names, cases[0].shape)
    if args.command == 'pretraining':
        content['packing'] = [
            pretraining.pack(case.backbone, case.side, args.repeats)
            for case in cases]
    write_json(out, content)
    console.print(f'Written to {out}')
    if args.command in TABLES:
        text = TABLES[args.command](content)
        write_bytes(out.with_suffix('.md'), text.encode())
        print(text)
    else:
        console.print(table(records, machine))
    return out


def table(records: list[dict], machine: dict) -> Table:
    """Format the records as a table; ratios are to the first candidate."""
    table = Table(
        title=f'{machine["device"]}, {machine["threads"]} threads, torch '
        f'{machine["torch"]}: medians (spread between quartiles)')
    for column in ('case', 'candidate'):
        table.add_column(column)
    for column in ('forward', 'ratio', 'with backward', 'ratio', 'memory',
                   'with backward', 'error'):
        table.add_column(column, justify='right')
    for record in records:
        ours = next(iter(record['candidates'].values()))
        for i, (name, found) in enumerate(record['candidates'].items()):
            cells = [record['case'] if i == 0 else '', name]
            reason = found.get('failed', found.get('skipped'))
            if reason is not None:
                table.add_row(*cells, reason)
                continue
            for kind in ('forward', 'both'):
                cells += ['', ''] if kind not in found else [
                    f'{_milliseconds(found[kind]["median"])} '
                    f'({_milliseconds(found[kind]["spread"])})',
                    '' if i == 0 or kind not in ours else
                    f'{found[kind]["median"] / ours[kind]["median"]:.2f}x'
                ]
            cells += [
                f'{found[k] / 2**20:.0f} MiB' if k in found else ''
                for k in ('forward_bytes', 'both_bytes')
            ]
            cells.append(f'{found["error"]:.0e}' if 'error' in found else '')
            table.add_row(*cells, end_section=i + 1 == len(
                record['candidates']))
    return table


def _milliseconds(seconds: float) -> str:
    return f'{1e3 * seconds:.3g} ms'
