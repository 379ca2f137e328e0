"""Train, or go on where a run of the same settings was interrupted."""

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
from ..engine.running import build_runner
from ..io.files import write_json


class TrainingTime(Hook):
    """Counts the seconds of training, validation left out.

    The count is kept in the checkpoints, so a resumed run goes on counting.
    """

    KEY = 'train_seconds'

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_train_iter(self,
                         runner,
                         batch_idx,
                         data_batch=None,
                         outputs=None) -> None:
        """Add what the iteration took."""
        before = runner.message_hub.get_info(self.KEY, 0.0)
        runner.message_hub.update_info(
            self.KEY, before + time.perf_counter() - self._start)


def train_or_go_on(cfg: Config, fresh: bool = False) -> Runner:
    """Train in ``cfg.work_dir``, or go on with what is there.

    The settings are noted beside the checkpoints: those of other settings are
    never continued.

    Args:
        cfg: The config, work folder included.
        fresh: Train again although a run of the same settings is there.
    """
    work_dir = Path(cfg.work_dir)
    key = dict(
        config=cfg.pretty_text,
        torch=torch.__version__,
        host=import_module(cfg.default_scope).__version__)
    settings = work_dir / 'settings.json'
    same = settings.is_file() and json.loads(settings.read_text()) == key
    # Without last_checkpoint they are of other settings.
    saved = (work_dir / 'last_checkpoint').is_file()
    latest = newest_checkpoint(work_dir, cfg.default_hooks.checkpoint) \
        if same and saved and not fresh else None
    if latest is not None:
        cfg.resume, cfg.load_from = True, latest
        print(f'Found {latest} of the same settings and go on from there '
              '(--fresh trains again)', flush=True)
    else:
        (work_dir / 'last_checkpoint').unlink(missing_ok=True)
        write_json(settings, key)
    runner = build_runner(cfg)
    runner.register_hook(TrainingTime(), priority='VERY_LOW')
    runner.train()
    return runner
