"""Train a detector or a segmentor from a config, as tools/train.py of mmdet and mmseg.

The config's ``default_scope`` selects the library. It is ``'mmengine'`` for models
that are pre-trained without labels.
"""

from __future__ import annotations

import argparse
import warnings

from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner

from ..engine.data_checks import check_data
from ..engine.device_checks import check_amp, check_sync_bn
from ..engine.resume import check_checkpoint, check_pretrained, newest_checkpoint
from ..engine.running import run_training
from ..openmmlab.pins import SCOPES
from .common import launch_config, launch_parser, reporting


def parser() -> argparse.ArgumentParser:
    """Return a parser with the arguments of mmdet's and mmseg's tools/train.py."""
    parser = launch_parser('Train a detector or a segmentor')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint; without a path, from the newest '
        'complete one in the work folder')
    return parser


def train_config(args: argparse.Namespace) -> Config:
    """Return the config with the arguments of :func:`parser` applied.

    Raises:
        ValueError: An argument does not fit the config.
    """
    cfg = launch_config(args, (*SCOPES, 'mmengine'))
    if args.amp:
        wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if wrapper not in ('OptimWrapper', 'AmpOptimWrapper', OptimWrapper,
                           AmpOptimWrapper):
            raise ValueError('--amp needs a config whose optim_wrapper is of '
                             f'type OptimWrapper, got {wrapper!r}')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError('--auto-scale-lr needs a config with '
                             'auto_scale_lr=dict(base_batch_size=...), got '
                             f'auto_scale_lr={cfg.get("auto_scale_lr")}')
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto' or (args.resume is None and cfg.get('resume')
                                 and cfg.get('load_from') is None):
        _resume_newest(cfg)
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    return cfg


def _resume_newest(cfg: Config) -> None:
    """Resume from the newest complete checkpoint.

    A run that ended before its first checkpoint starts again. It keeps the
    config's ``load_from``, which a resumed run would ignore.
    """
    checkpoint = newest_checkpoint(cfg.work_dir, *_checkpoint_hooks(cfg))
    if checkpoint is None:
        warnings.warn(
            f'--resume found no checkpoint in {cfg.work_dir}: the run starts '
            f'again, with load_from={cfg.get("load_from")!r}',
            stacklevel=2)
        cfg.resume = False
        return
    cfg.resume, cfg.load_from = True, checkpoint


def _checkpoint_hooks(cfg: Config) -> list[dict]:
    """Return the settings of the hooks that save checkpoints."""
    hooks = [(cfg.get('default_hooks') or {}).get('checkpoint')]
    hooks += [hook for hook in cfg.get('custom_hooks') or []
              if 'CheckpointHook' in str(hook.get('type'))]
    return [hook for hook in hooks if hook]


def prepare_training(args: argparse.Namespace) -> Config:
    """Return the config of a training, checked before anything is built.

    Raises:
        OSError: The config, or a file that it names, does not exist.
        ValueError: An argument or the data do not fit the config, an argument
            does not fit the device, or the initial checkpoint is damaged.
    """
    cfg = train_config(args)
    check_amp(cfg, args.amp)
    check_sync_bn(cfg)
    check_data(cfg, 'train', *(['val'] if cfg.get('val_cfg') else []))
    check_pretrained(cfg.model)
    checked = args.resume == 'auto' and cfg.get('resume')
    if cfg.get('load_from') and not checked:
        check_checkpoint(cfg.load_from)
    return cfg


def main(args: argparse.Namespace) -> Runner:
    """Run the command; only errors of the preparation end without a traceback.

    Raises:
        SystemExit: An argument, the config, its data or the checkpoint is wrong.
        OSError: The disk is full.
    """
    with reporting('train', OSError, SyntaxError, ValueError):
        cfg = prepare_training(args)
    return run_training(cfg)
