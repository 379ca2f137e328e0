"""Train, or resume an interrupted run with the same settings."""

from __future__ import annotations

import json
import time
from importlib import import_module
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..engine.resume import newest_checkpoint
from ..engine.running import build_runner, check_batches
from ..io.files import write_json


class TrainingTime(Hook):
    """Measure the seconds of training, without validation.

    The sum is stored in the checkpoints, so a resumed run adds to it.

    Args:
        loading: Whether to include the time between iterations, such as waiting
            for data.
    """

    KEY = 'train_seconds'
    CPU_KEY = 'train_cpu_seconds'  # of this process, all threads together

    def __init__(self, loading: bool = False) -> None:
        self.loading = loading

    def before_train(self, runner) -> None:
        """Reset the clock: a resumed loop first loads the batches trained before."""
        self._start = None

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Start the clock."""
        if not self.loading or self._start is None:
            self._start = self._now()

    def after_train_iter(self,
                         runner,
                         batch_idx,
                         data_batch=None,
                         outputs=None) -> None:
        """Add the time of the iteration."""
        now = self._now()
        for key, start, end in zip((self.KEY, self.CPU_KEY), self._start, now):
            before = runner.message_hub.get_info(key, 0.0)
            runner.message_hub.update_info(key, before + end - start)
        self._start = now

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def rescale_schedule(cfg: Config, length: int) -> None:
    """Set the number of epochs, or of iterations, and scale the schedulers.

    Schedulers in the other unit, such as a warm-up of some iterations in a
    training of epochs, are not changed.
    """
    by_epoch = 'max_iters' not in cfg.train_cfg
    key = 'max_epochs' if by_epoch else 'max_iters'
    old = cfg.train_cfg[key]

    def scaled(count: int) -> int:
        return count and max(1, round(count * length / old))

    for scheduler in cfg.param_scheduler:
        if scheduler.get('by_epoch', True) != by_epoch:
            continue
        begin = scheduler.get('begin', 0)
        if 'T_max' in scheduler:
            scheduler.T_max = scaled(begin + scheduler.T_max) - scaled(begin)
        for name in {'begin', 'end'} & set(scheduler):
            scheduler[name] = scaled(scheduler[name])
        if 'milestones' in scheduler:
            scheduler.milestones = [*map(scaled, scheduler.milestones)]
    cfg.train_cfg[key] = length
    if 'val_interval' in cfg.train_cfg:
        cfg.train_cfg.val_interval = min(cfg.train_cfg.val_interval, length)


def train_or_go_on(cfg: Config, fresh: bool = False,
                   clock: TrainingTime | None = None,
                   given: str | None = None) -> Runner:
    """Train in ``cfg.work_dir``, or resume a run there that has the same settings.

    The settings are stored beside the checkpoints. A run with other settings is
    never resumed.

    Args:
        cfg: The config, with its ``work_dir``.
        fresh: Whether to train again even if such a run exists.
        clock: The hook that measures the time; None: only iterations count.
        given: A mark of the weights that the run starts with, besides the path in
            the config; a run that started with others is not resumed.

    Raises:
        ValueError: A batch is larger than the data.
    """
    work_dir = Path(cfg.work_dir)
    key = dict(
        config=cfg.pretty_text,
        torch=torch.__version__,
        host=import_module(cfg.default_scope).__version__,
        **({} if given is None else dict(given=given)))
    settings = work_dir / 'settings.json'
    same = settings.is_file() and json.loads(settings.read_text()) == key
    # Without last_checkpoint the checkpoints are from other settings.
    saved = (work_dir / 'last_checkpoint').is_file()
    latest = newest_checkpoint(work_dir, cfg.default_hooks.checkpoint) \
        if same and saved and not fresh else None
    if latest is not None:
        cfg.resume, cfg.load_from = True, latest
        print(f'Found {latest} with the same settings, go on from there '
              '(--fresh trains again)', flush=True)
    else:
        (work_dir / 'last_checkpoint').unlink(missing_ok=True)
        write_json(settings, key)
    # mmengine names a run by its second, and runs of one name share their records.
    cfg.experiment_name = f'{work_dir.name}_{time.time_ns()}'
    runner = build_runner(cfg)
    runner.register_hook(clock or TrainingTime(), priority='VERY_LOW')
    check_batches(runner)
    runner.train()
    return runner
