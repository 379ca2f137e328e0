"""Trainings and tests by the functions of the tools, isolated from each other."""

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

# Load data without worker processes.
LOADERS = [f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
           for key in ('num_workers=0', 'persistent_workers=False')]


def options_of(settings, prefix=''):
    """Flatten nested settings to KEY.KEY=VALUE, as --cfg-options reads them."""
    if isinstance(settings, (list, tuple)):
        settings = str(settings).replace(' ', '')
    if not isinstance(settings, dict):
        return [f'{prefix}={settings}']
    return [option for key, value in settings.items()
            for option in options_of(value, f'{prefix}.{key}' if prefix else key)]


def kept_by_name():
    """List the classes of mmengine that keep their instances by name."""
    found = [DefaultScope, MMLogger, MessageHub, Visualizer]
    for cls in found:  # the list grows in the loop
        found += cls.__subclasses__()
    return found


@contextlib.contextmanager
def alone():
    """Hide and then restore the instances that mmengine keeps by name.

    Otherwise a second run in this process would use the visualizer of the first.
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
    """Work in a folder; remove LOCAL_RANK afterwards, which a run sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Set and deleted, so that the undo removes the value of a run.
        patch.setenv('LOCAL_RANK', '0')
        patch.delenv('LOCAL_RANK')
        yield


def _parsed(command, args, options):
    options = ['--cfg-options', *options] if options else []
    return command.parser().parse_args([*map(str, args), *options])


@alone()
def train(config, work_dir, *options, flags=()):
    """Train a config with options; return the work folder."""
    args = _parsed(train_command, [config, '--work-dir', work_dir, *flags], options)
    running.run_training(train_command.prepare_training(args))
    return Path(work_dir)


@alone()
def run_test(config, checkpoint, work_dir, *flags, options=()):
    """Test a checkpoint of a config with options; return the metrics."""
    args = _parsed(test_command, [config, checkpoint, '--work-dir', work_dir, *flags],
                   options)
    return running.run_test(test_command.prepare_test(args), args.out)


def _logged(work_dir):
    """Read the logs of all runs in a work folder, in order."""
    return [json.loads(line)
            for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
            for line in log.read_text().splitlines()]


def validations(work_dir, key='coco/bbox_mAP'):
    """Return the metrics of each validation."""
    no_metrics = ('data_time', 'time', 'step')
    return [{k: v for k, v in line.items() if k not in no_metrics}
            for line in _logged(work_dir) if key in line]


def logged_losses(work_dir):
    """Return the training losses."""
    return [line['loss'] for line in _logged(work_dir) if 'loss' in line]
