"""Trainings and tests by the tools' own functions, each as if it were alone."""

import contextlib
import json
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from fpt_plugin.commands import test as test_command
from fpt_plugin.commands import train as train_command
from fpt_plugin.engine import running

# Settings of every test: no processes that load data.
LOADERS = [
    f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]


def kept_by_name():
    """mmengine's classes that keep their instances by name."""
    found = [DefaultScope, MMLogger, MessageHub, Visualizer]
    for cls in found:  # grows on the way
        found += cls.__subclasses__()
    return found


@contextlib.contextmanager
def alone():
    """As in a process of its own: nothing that mmengine keeps stays.

    Two runs would draw and log with the first one's visualizer.
    """
    outside = {cls: dict(cls._instance_dict) for cls in kept_by_name()}
    for cls in outside:
        cls._instance_dict.clear()
    try:
        yield
    finally:
        for cls in kept_by_name():
            for made in cls._instance_dict.values():
                for handler in getattr(made, 'handlers', ()):
                    handler.close()
            cls._instance_dict.clear()
            cls._instance_dict.update(outside.get(cls, {}))


@contextlib.contextmanager
def inside(folder):
    """Work in a folder; ranks that a run sets are gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Set, then deleted: so that undoing removes what a run sets.
        patch.setenv('LOCAL_RANK', '0')
        patch.delenv('LOCAL_RANK')
        yield


@alone()
def train(config, work_dir, *options, flags=()):
    """Train a config under settings; the work folder."""
    args = [config, '--work-dir', str(work_dir), *flags]
    args += ['--cfg-options', *options] if options else []
    running.run_training(train_command.prepare_training(
        train_command.parser().parse_args(args)))
    return Path(work_dir)


@alone()
def run_test(config, checkpoint, work_dir, *flags, options=()):
    """Test a config's checkpoint under settings; the metrics."""
    args = [config, str(checkpoint), '--work-dir', str(work_dir), *flags]
    args += ['--cfg-options', *options] if options else []
    parsed = test_command.parser().parse_args(args)
    return running.run_test(test_command.prepare_test(parsed), parsed.out)


def validations(work_dir, key='coco/bbox_mAP'):
    """The metrics of each validation, from the logs of all runs in order."""
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = [json.loads(s) for log in logs for s in log.read_text().splitlines()]
    # Times and the step are no metrics.
    return [{
        k: v for k, v in line.items() if k not in ('data_time', 'time', 'step')
    } for line in lines if key in line]


def two_losses(config, work_dir, *options):
    """Of two training steps by iterations; nothing is validated or saved."""
    work = train(
        config, work_dir, *LOADERS, 'model.pretrained=None', 'val_cfg=None',
        'val_dataloader=None', 'val_evaluator=None', 'train_cfg.max_iters=2',
        'train_cfg.val_interval=3', 'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=9',
        'default_hooks.checkpoint.save_last=False', *options)
    log, = work.glob('*/vis_data/scalars.json')
    return [json.loads(line)['loss'] for line in log.read_text().splitlines()]
