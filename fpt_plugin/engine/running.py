"""Runners of a config, and what they do on behalf of the user."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.registry import METRICS, RUNNERS
from mmengine.runner import Runner

from ..openmmlab.safe_loading import refuse_pickles
from .checkpoint_classes import CheckpointClassesHook
from .data_checks import check_model_classes

# What looks at each host's data or models while they run.
CHECKS = dict(
    mmdet=('PyramidLevelCheckHook', ),
    mmseg=('PyramidLevelCheckHook', 'SegLabelCheckHook'))
ROOM = 2**20  # bytes; a disk with less is full


def start_cpu_processes(cfg: Config) -> None:
    """Connect torchrun's processes where there is no accelerator.

    mmengine asks CUDA for a device whatever the backend is, and gives the
    device to the model's wrapper too.
    """
    if cfg.get('launcher') != 'pytorch' or get_device() != 'cpu' \
            or dist.is_distributed():
        return
    torch.distributed.init_process_group('gloo')
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False))


def stop_processes() -> None:
    """Part in order: a process that just ends may abort in gloo's threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def build_runner(cfg: Config) -> Runner:
    """The config's own runner type, or mmengine's.

    A segmentor's labels are looked at on the way, and the maps that the heads
    of a model are given. Checkpoints are read as weights only,
    unless DeepSpeed wrote them, and saved whole.
    """
    if 'DeepSpeed' not in str((cfg.get('strategy') or {}).get('type')):
        refuse_pickles()  # DeepSpeed's checkpoints are some
    keep_checkpoints_whole(cfg)
    start_cpu_processes(cfg)
    cfg.custom_hooks = list(cfg.get('custom_hooks') or [])
    for check in CHECKS.get(cfg.default_scope, ()):
        if check not in str(cfg.custom_hooks):
            cfg.custom_hooks.append(dict(type=f'fpt_plugin.{check}'))
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def keep_checkpoints_whole(cfg: Config) -> None:
    """Save by WholeCheckpointHook where mmengine's hook would.

    Its settings stay; a hook of another type, or none, stays too.
    """
    hooks = dict(cfg.get('default_hooks') or {})
    # What mmengine takes where a config says nothing.
    hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    cfg.default_hooks = hooks
    for hook in (cfg.default_hooks.checkpoint, *(cfg.get('custom_hooks') or [])):
        if isinstance(hook, dict) and hook.get('type') in (
                'CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
            hook['type'] = 'fpt_plugin.WholeCheckpointHook'


@contextmanager
def naming_full_disk(work_dir: str) -> Iterator[None]:
    """Say where there is no space.

    Errors of ``write`` name no file; then it is said which of the folders that
    are written to are full: the run's, that of temporary files, or the shared
    memory of workers.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno, f'{error.strerror}: make room, then go on with --resume',
            error.filename or _full_folders(work_dir)) from error


def _full_folders(work_dir: str) -> str:
    """Those that have no room; all of them where it is not to be seen."""
    folders = [str(work_dir), tempfile.gettempdir(), '/dev/shm']
    there = [folder for folder in folders if Path(folder).is_dir()]
    full = [folder for folder in there
            if shutil.disk_usage(folder).free < ROOM]
    return ' or '.join(full or there)


def run_training(cfg: Config) -> Runner:
    """Build the runner of a config and train.

    Raises:
        OSError: The disk is full.
        ValueError: The heads do not count the classes of the data.
    """
    with naming_full_disk(cfg.work_dir):
        runner = build_runner(cfg)
        check_model_classes(runner.model, cfg, 'train',
                            *(['val'] if cfg.get('val_cfg') else []))
        runner.train()
    stop_processes()
    return runner


def run_test(cfg: Config, out: str | None) -> dict[str, float]:
    """Build the runner of a config and test; ``out`` is a detector's pickle."""
    runner = build_runner(cfg)
    runner.register_hook(CheckpointClassesHook())
    check_model_classes(runner.model, cfg, 'test')
    if out is not None and cfg.default_scope == 'mmdet':
        runner.test_evaluator.metrics.append(
            METRICS.build(dict(type='mmdet.DumpDetResults', out_file_path=out)))
    metrics = runner.test()
    stop_processes()
    return metrics
