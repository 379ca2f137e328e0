"""Command that prepares data, trains a small model and draws its results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from ...io.files import write_json
from ..same_settings import TrainingTime, rescale_schedule, train_or_go_on
from .detection import Detection
from .pretraining import Pretraining
from .segmentation import Segmentation

ERRORS = (OSError, RuntimeError, ValueError)
INTERRUPTED = 'run the same command again to resume from the last finished epoch'

TASKS = {task.name: task for task in (Detection(), Segmentation(), Pretraining())}
# Each flag, and the variants of all tasks that have it.
FLAGS = {
    flag: tuple(dict.fromkeys(variant for task in TASKS.values()
                              if task.flag == flag for variant in task.variants))
    for flag in ('neck', 'method')
}


def parser() -> argparse.ArgumentParser:
    """Build the parser of tools/quickstart.py."""
    parser = argparse.ArgumentParser(
        description='Train and evaluate a small detector of trees, a small '
        'segmentor of nuclei, or a backbone without labels, and draw results')
    parser.add_argument(
        '--task',
        choices=tuple(TASKS),
        default='detection',
        help='trees in aerial photographs, nuclei in a microscope image, or '
        'pre-training on the photographs without boxes')
    parser.add_argument(
        '--neck',
        choices=FLAGS['neck'],
        help='fpt (default); fpn: the same model with a plain FPN; ufp '
        '(segmentation only): a dilated backbone with UFP and windowed FPT')
    parser.add_argument(
        '--method',
        choices=FLAGS['method'],
        help='pre-training: greenmim (default); uniform: one visible square in '
        'each 2x2; simmim: computes masked squares too')
    parser.add_argument('--epochs', type=int, help="default: the config's")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--work-dir',
        help='default: work_dirs/quickstart; names of a task, neck or method '
        'other than the default are appended')
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='train again even if a finished or interrupted run exists')
    return parser


def default_work_dir(task: str, variant: str) -> str:
    """Return the default work folder of a variant."""
    default = variant == TASKS[task].variants[0]
    return TASKS[task].work_dir + ('' if default else f'-{variant}')


def quickstart_config(task: str, variant: str, epochs: int | None, seed: int,
                      work_dir: str) -> Config:
    """Load the shipped config and apply the flags of the quickstart.

    Raises:
        ValueError: ``epochs`` is less than 1, or the task has no such variant.
    """
    flag, variants = TASKS[task].flag, TASKS[task].variants
    if variant not in variants:
        raise ValueError(f'--{flag} must be one of {variants} with '
                         f'--task {task}, got {variant!r}')
    cfg = TASKS[task].load(variant)
    if epochs is not None:
        if epochs < 1:
            raise ValueError(f'--epochs must be at least 1, got {epochs}')
        rescale_schedule(cfg, epochs)
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = work_dir
    return cfg


def _variant(args: argparse.Namespace) -> str:
    """Return the variant that the flags select.

    Raises:
        ValueError: A flag of another task is given.
    """
    task = TASKS[args.task]
    for flag in FLAGS:
        given = getattr(args, flag)
        if flag != task.flag and given is not None:
            raise ValueError(f'--task {task.name} has --{task.flag} '
                             f'{task.variants}, got --{flag} {given}')
    return getattr(args, task.flag) or task.variants[0]


def main(args: argparse.Namespace) -> dict:
    """Prepare the data, train, evaluate, draw, and write ``summary.json``.

    Returns:
        The content of ``summary.json``.
    """
    task, variant = TASKS[args.task], _variant(args)
    work_dir = Path(args.work_dir or default_work_dir(args.task, variant))
    cfg = quickstart_config(args.task, variant, args.epochs, args.seed,
                            str(work_dir))
    for package in task.packages:
        print(f'{package.content}: {package.source}; licence: '
              f'{package.licence}', flush=True)
    task.prepare()
    runner = train_or_go_on(cfg, args.fresh)
    figures = task.test(runner)
    picture = task.draw(runner, work_dir / task.picture)
    checkpoint = find_latest_checkpoint(str(work_dir))
    summary = dict(
        **figures,
        **task.export(checkpoint, work_dir),
        train_images=task.count_images(cfg.train_dataloader),
        val_images=task.count_images(cfg.test_dataloader),
        train_seconds=round(
            runner.message_hub.get_info(TrainingTime.KEY, 0.0), 1),
        picture=str(picture),
        task=args.task,
        **{task.flag: variant},
        epochs=cfg.train_cfg.max_epochs,
        seed=args.seed)
    write_json(work_dir / 'summary.json', summary)
    _report(summary, work_dir, checkpoint)
    return summary


def _report(summary: dict, work_dir: Path, checkpoint: str | None) -> None:
    task = TASKS[summary['task']]
    lines = ['', _figures(summary)]
    others = [name for name in task.variants if name != summary[task.flag]]
    for other in others:
        earlier = Path(default_work_dir(task.name, other)) / 'summary.json'
        if earlier.is_file():
            lines.append(_figures(json.loads(earlier.read_text())))
    flag = '' if task.name == 'detection' else f'--task {task.name} '
    lines.append(f'on {summary["val_images"]} held-out tiles {task.held_out}')
    lines += [
        *task.lines(summary), '',
        f'{task.caption}: {summary["picture"]}',
        f'Figures: {work_dir / "summary.json"}',
        f'Checkpoint: {checkpoint}', '', 'Next: bash tools/run_tests.sh',
        f'or:   bash tools/quickstart.sh {flag}--{task.flag} {others[0]}'
    ]
    print('\n'.join(lines), flush=True)


def _figures(summary: dict) -> str:
    """Format a summary as one line: variant, figures, and training time."""
    task = TASKS[summary['task']]
    return (f'{summary[task.flag].upper()}  {task.figures(summary)}  '
            f'({summary["epochs"]} epochs, seed {summary["seed"]}, '
            f'{summary["train_seconds"] / 60:.1f} minutes)')
