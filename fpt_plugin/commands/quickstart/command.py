"""From packages of the index to a trained model and its picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from ...io.files import write_json
from ..same_settings import TrainingTime, train_or_go_on
from .detection import Detection
from .segmentation import Segmentation

ERRORS = (OSError, RuntimeError, ValueError)
INTERRUPTED = 'the same command goes on from the last finished epoch'

TASKS = {task.name: task for task in (Detection(), Segmentation())}
NECKS = tuple(dict.fromkeys(n for task in TASKS.values() for n in task.necks))


def parser() -> argparse.ArgumentParser:
    """The flags of tools/quickstart.py."""
    parser = argparse.ArgumentParser(
        description='Train, evaluate and draw a small detector of trees, or a '
        'small segmentor of nuclei')
    parser.add_argument(
        '--task',
        choices=tuple(TASKS),
        default='detection',
        help='trees in aerial photographs, or nuclei in a microscope image')
    parser.add_argument(
        '--neck',
        choices=NECKS,
        default='fpt',
        help='fpn trains the same model with a plain FPN, ufp (segmentation) a '
        'dilated one with UFP and windowed FPT')
    parser.add_argument('--epochs', type=int, help="the config's by default")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--work-dir',
        help='default: work_dirs/quickstart for detection with FPT, with '
        '-segmentation and -NECK behind it for others')
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='train again although a finished or interrupted run is there')
    return parser


def default_work_dir(task: str, neck: str) -> str:
    """Where the quickstart with a neck keeps its run."""
    return TASKS[task].work_dir + ('' if neck == 'fpt' else f'-{neck}')


def quickstart_config(task: str, neck: str, epochs: int | None, seed: int,
                      work_dir: str) -> Config:
    """The shipped config under the flags of the quickstart.

    Raises:
        ValueError: ``epochs`` is less than 1, or the task has no such neck.
    """
    if neck not in TASKS[task].necks:
        raise ValueError(f'--neck must be one of {TASKS[task].necks} with '
                         f'--task {task}, got {neck!r}')
    cfg = TASKS[task].load(neck)
    if epochs is not None:
        if epochs < 1:
            raise ValueError(f'--epochs must be at least 1, got {epochs}')
        rescale_schedule(cfg, epochs)
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = work_dir
    return cfg


def rescale_schedule(cfg: Config, epochs: int) -> None:
    """Train for another number of epochs: the schedule is stretched along."""
    for scheduler in cfg.param_scheduler:
        if scheduler.get('by_epoch', True):
            scheduler.end = epochs
            if 'T_max' in scheduler:
                scheduler.T_max = epochs
    cfg.train_cfg.max_epochs = epochs
    cfg.train_cfg.val_interval = min(cfg.train_cfg.val_interval, epochs)


def main(args: argparse.Namespace) -> dict:
    """What tools/quickstart.py does.

    Returns:
        The content of ``summary.json``.
    """
    task = TASKS[args.task]
    work_dir = Path(args.work_dir or default_work_dir(args.task, args.neck))
    cfg = quickstart_config(args.task, args.neck, args.epochs, args.seed,
                            str(work_dir))
    for package in task.packages:
        print(f'{package.content}: {package.source}; licence: '
              f'{package.licence}', flush=True)
    task.prepare()
    runner = train_or_go_on(cfg, args.fresh)
    figures = task.test(runner)
    picture = task.draw(runner, work_dir / task.picture)
    summary = dict(
        **figures,
        train_images=task.count_images(cfg.train_dataloader),
        val_images=task.count_images(cfg.val_dataloader),
        train_seconds=round(
            runner.message_hub.get_info(TrainingTime.KEY, 0.0), 1),
        picture=str(picture),
        task=args.task,
        neck=args.neck,
        epochs=cfg.train_cfg.max_epochs,
        seed=args.seed)
    write_json(work_dir / 'summary.json', summary)
    _report(summary, work_dir, find_latest_checkpoint(str(work_dir)))
    return summary


def _report(summary: dict, work_dir: Path, checkpoint: str | None) -> None:
    task = TASKS[summary['task']]
    lines = ['', _figures(summary)]
    others = [neck for neck in task.necks if neck != summary['neck']]
    for neck in others:
        beside = Path(default_work_dir(task.name, neck)) / 'summary.json'
        if beside.is_file():
            lines.append(_figures(json.loads(beside.read_text())))
    flag = '' if task.name == 'detection' else f'--task {task.name} '
    lines.append(f'on {summary["val_images"]} held-out tiles {task.held_out}')
    if summary.get('transfer'):
        lines.append(f'on another image: {_named(summary["transfer"], task)}')
    lines += [
        '',
        f'{task.caption}: {summary["picture"]}',
        f'Figures: {work_dir / "summary.json"}',
        f'Checkpoint: {checkpoint}', '', 'Next: bash tools/run_tests.sh',
        f'or:   bash tools/quickstart.sh {flag}--neck {others[0]}'
    ]
    print('\n'.join(lines), flush=True)


def _figures(summary: dict) -> str:
    """One line of a table: whose figures, and what they cost."""
    figures = _named(summary, TASKS[summary['task']])
    return (f'{summary["neck"].upper()}  {figures}  '
            f'({summary["epochs"]} epochs, seed {summary["seed"]}, '
            f'{summary["train_seconds"] / 60:.1f} minutes)')


def _named(figures: dict, task: Detection | Segmentation) -> str:
    return '  '.join(f'{name.upper()} {figures[name]:.3f}' for name in task.shown)
