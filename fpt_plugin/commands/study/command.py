"""Command that trains the rows of a study and shows the results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...io.files import check_writable, write_bytes
from .picture import draw_answers
from .running import Study, mark_of, run
from .table import markdown, plot, read_rows

ERRORS = (OSError, RuntimeError, ValueError)
INTERRUPTED = 'run the same command again to resume from the last checkpoint'


def parser() -> argparse.ArgumentParser:
    """Build the parser of tools/study.py."""
    parser = argparse.ArgumentParser(
        description='Train the rows of a study with several seeds, skip '
        'finished ones, and print the table')
    parser.add_argument(
        'study', help='name of a config in configs/studies, or its path')
    parser.add_argument('--rows', nargs='+', metavar='ROW',
                        help='default: all rows')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2],
                        metavar='SEED')
    parser.add_argument('--data-root', help="default: the config's")
    parser.add_argument(
        '--results', default='benchmarks/studies',
        help='folder of the results, a JSON for each row and seed')
    parser.add_argument('--work-dir', default='work_dirs/studies',
                        help='folder of checkpoints and logs')
    parser.add_argument('--fresh', action='store_true',
                        help='train finished and interrupted runs again')
    parser.add_argument('--table', action='store_true',
                        help='print the table of finished runs without training')
    parser.add_argument('--markdown', metavar='FILE',
                        help='also write the table to a file')
    parser.add_argument('--plot', metavar='FILE',
                        help='plot the metric against the cost')
    parser.add_argument('--picture', metavar='FILE',
                        help='draw the predictions of --rows for one test image, '
                        'segmentors only')
    return parser


def main(args: argparse.Namespace) -> str:
    """Train the unfinished rows and return the table."""
    study = Study.load(args.study)
    results = Path(args.results) / study.name
    for out in (args.markdown, args.plot, args.picture):
        if out is not None:
            check_writable(out)
    if args.plot is not None and study.shape is None:
        raise ValueError(f'shape of the study {study.name} must be a height and a '
                         'width for a plot against multiply-adds, got None')
    if not args.table:
        _run_rows(study, args, results)
    rows = read_rows(study, results)
    if not rows:
        raise ValueError(f'{results} has no result of the study {study.name}')
    table = markdown(study, rows)
    if args.markdown is not None:
        write_bytes(args.markdown, f'{table}\n'.encode())
    if args.plot is not None:
        plot(study, rows, Path(args.plot))
    if args.picture is not None:
        draw_answers(study, args.rows or list(study.rows),
                     Path(args.work_dir) / study.name, Path(args.picture),
                     args.seeds[0])
    print(table)
    return table


def _run_rows(study: Study, args: argparse.Namespace, results: Path) -> None:
    """Train all rows with one seed before the next seed.

    All rows can then be compared even if the study is stopped early.
    """
    names = args.rows or list(study.rows)
    for row in names:
        mark_of(study, row, 0)  # raise for a wrong row before any training
    for seed in args.seeds:
        for row in names:
            out = results / f'{row}-{seed}.json'
            if not args.fresh and _finished(study, row, seed, out):
                print(f'{out} is finished', flush=True)
                continue
            print(f'{study.name}: {row}, seed {seed}', flush=True)
            run(study, row, seed, out,
                Path(args.work_dir) / study.name / f'{row}-{seed}',
                args.data_root, args.fresh)


def _finished(study: Study, row: str, seed: int, out: Path) -> bool:
    """Return whether a result of the same settings exists."""
    if not out.is_file():
        return False
    settings = json.loads(out.read_text(encoding='utf-8')).get('settings')
    return settings == mark_of(study, row, seed)
