"""Build and run the runner of a config, with the project's checks and hooks."""

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
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..openmmlab.safe_loading import refuse_pickles
from .checkpoint_classes import CheckpointClassesHook
from .data_checks import check_model_classes

# Hooks that check the data or model of each library.
CHECK_HOOKS = dict(
    mmdet=('PyramidLevelCheckHook', ),
    mmseg=('PyramidLevelCheckHook', 'SegLabelCheckHook'))
MIN_FREE_BYTES = 2**20  # a disk with less counts as full


def start_cpu_processes(cfg: Config) -> None:
    """Connect torchrun's processes on a machine without an accelerator.

    mmengine sets a CUDA device for every backend, and passes it to the model's
    wrapper too.
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
    """Shut down the process group; otherwise gloo's threads may abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config: its own type, or mmengine's.

    Hooks check a segmentor's labels and the maps that the heads read.
    Checkpoints are read as weights only, except DeepSpeed's, and saved by
    WholeCheckpointHook.
    """
    if 'DeepSpeed' not in str((cfg.get('strategy') or {}).get('type')):
        refuse_pickles()  # DeepSpeed's checkpoints are pickles
    keep_checkpoints_whole(cfg)
    start_cpu_processes(cfg)
    cfg.custom_hooks = list(cfg.get('custom_hooks') or [])
    for check in CHECK_HOOKS.get(cfg.default_scope, ()):
        if check not in str(cfg.custom_hooks):
            cfg.custom_hooks.append(dict(type=f'fpt_plugin.{check}'))
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def keep_checkpoints_whole(cfg: Config) -> None:
    """Replace mmengine's CheckpointHook by WholeCheckpointHook.

    The settings of the hook are kept. A hook of another type, or no hook, is
    not changed.
    """
    hooks = dict(cfg.get('default_hooks') or {})
    # mmengine's default.
    hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    cfg.default_hooks = hooks
    for hook in (cfg.default_hooks.checkpoint, *(cfg.get('custom_hooks') or [])):
        if isinstance(hook, dict) and hook.get('type') in (
                'CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
            hook['type'] = 'fpt_plugin.WholeCheckpointHook'


@contextmanager
def naming_full_disk(work_dir: str) -> Iterator[None]:
    """Name the full folder in the error message if the disk is full.

    Errors of ``write`` have no file name. The message then names the full ones
    among the run's folder, the folder of temporary files and the shared memory
    of workers.
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
    """Return the full folders, or all of them if none seems to be full."""
    folders = [str(work_dir), tempfile.gettempdir(), '/dev/shm']
    existing = [folder for folder in folders if Path(folder).is_dir()]
    full = [folder for folder in existing
            if shutil.disk_usage(folder).free < MIN_FREE_BYTES]
    return ' or '.join(full or existing)


def check_batches(runner: Runner) -> None:
    """Require a batch in each epoch of a training.

    Raises:
        ValueError: ``drop_last`` leaves none, because a batch is larger than the data.
    """
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return  # an iteration-based loop repeats the data
    loader = runner.train_dataloader
    if len(loader) == 0:
        raise ValueError(
            'train_dataloader.batch_size must be at most the number of images of a '
            f'process, {len(loader.sampler)}, because drop_last=True leaves no batch, '
            f'got {loader.batch_sampler.batch_size}')


def run_training(cfg: Config) -> Runner:
    """Build the runner of a config and train.

    Raises:
        OSError: The disk is full.
        ValueError: The heads have another number of classes than the data, or the
            data are fewer than a batch.
    """
    with naming_full_disk(cfg.work_dir):
        runner = build_runner(cfg)
        check_model_classes(runner.model, cfg, 'train',
                            *(['val'] if cfg.get('val_cfg') else []))
        check_batches(runner)
        runner.train()
    stop_processes()
    return runner


def run_test(cfg: Config, out: str | None) -> dict[str, float]:
    """Build the runner of a config and test it.

    Args:
        cfg: The config.
        out: File for the pickled results of a detector; None: no file.
    """
    runner = build_runner(cfg)
    runner.register_hook(CheckpointClassesHook())
    check_model_classes(runner.model, cfg, 'test')
    if out is not None and cfg.default_scope == 'mmdet':
        runner.test_evaluator.metrics.append(
            METRICS.build(dict(type='mmdet.DumpDetResults', out_file_path=out)))
    metrics = runner.test()
    stop_processes()
    return metrics
