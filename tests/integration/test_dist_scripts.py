"""The launchers of several processes, with stand-ins and for real."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_models
from helpers.shipped_configs import build
from helpers.synthetic_data import write_coco_squares
from mmengine.config import Config
from mmengine.fileio import load

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'


def call(script: str, *arguments: str, **environment: str):
    return subprocess.run(['bash', str(TOOLS / script), *arguments],
                          capture_output=True,
                          text=True,
                          timeout=1800,
                          env={
                              **os.environ,
                              **environment
                          })


@pytest.fixture
def stand_in(tmp_path) -> dict[str, str]:
    """PYTHON and srun that print the arguments they get, one a line."""
    for name in ('srun', 'python'):
        path = tmp_path / name
        path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
        path.chmod(0o755)
    return dict(
        PYTHON=str(tmp_path / 'python'),
        PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')


def test_torchrun_of_one_machine(stand_in):
    lines = call('dist_train.sh', 'a config.py', '8', '--amp', '--work-dir',
                 'a folder', **stand_in).stdout.splitlines()
    assert lines == [
        '-m', 'torch.distributed.run', '--nnodes', '1', '--node_rank', '0',
        '--master_addr', '127.0.0.1', '--master_port', '29500',
        '--nproc_per_node', '8',
        str(TOOLS / 'train.py'), 'a config.py', '--launcher', 'pytorch',
        '--amp', '--work-dir', 'a folder'
    ]


def test_torchrun_of_many_machines(stand_in):
    lines = call('dist_test.sh', 'a.py', 'b.pth', '4', '--tta', NNODES='3',
                 NODE_RANK='2', MASTER_ADDR='first', PORT='1234',
                 **stand_in).stdout.splitlines()
    for name, value in (('nnodes', '3'), ('node_rank', '2'),
                        ('master_addr', 'first'), ('master_port', '1234'),
                        ('nproc_per_node', '4')):
        assert lines[lines.index(f'--{name}') + 1] == value
    assert lines[-6:] == [
        str(TOOLS / 'test.py'), 'a.py', 'b.pth', '--launcher', 'pytorch',
        '--tta'
    ]


@pytest.mark.parametrize('script, arguments', [
    ('dist_train.sh', ('a.py', )),
    ('dist_train.sh', ('a.py', '--amp')),
    ('dist_train.sh', ('a.py', '0')),
    ('dist_test.sh', ('a.py', 'b.pth')),
    ('dist_test.sh', ('a.py', 'b.pth', '1.5')),
    ('slurm_train.sh', ('partition', 'job')),
    ('slurm_test.sh', ('partition', 'job', 'a.py')),
])
def test_missing_arguments(stand_in, script, arguments):
    failed = call(script, *arguments, **stand_in)
    assert failed.returncode == 2 and not failed.stdout
    assert f'usage: bash {script}' in failed.stderr
    assert ' '.join(arguments) in failed.stderr


def test_slurm(stand_in):
    lines = call('slurm_test.sh', 'gpu', 'my job', 'a.py', 'b.pth', '--tta',
                 GPUS='4', SRUN_ARGS='--mem 8G', **stand_in).stdout.splitlines()
    python = lines.index(stand_in['PYTHON'])
    assert lines[:python] == [
        '-p', 'gpu', '--job-name=my job', '--gres=gpu:4', '--ntasks=4',
        '--ntasks-per-node=4', '--cpus-per-task=5', '--kill-on-bad-exit=1',
        '--mem', '8G'
    ]
    assert lines[python + 1:] == [
        '-u',
        str(TOOLS / 'test.py'), 'a.py', 'b.pth', '--tta', '--launcher', 'slurm'
    ]


def write_config(folder: Path, model: str) -> Path:
    """The quickstart's detector on four squares, one epoch; its model changed.

    Every parameter that learns must get a gradient in every process.
    """
    write_coco_squares(folder / 'data')
    config = folder / 'config.py'
    config.write_text(f"""
_base_ = {str(ROOT / 'configs/quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py')!r}
data_root = {str(folder / 'data')!r}
metainfo = dict(classes=('square', ))
dataset = dict(data_root=data_root, ann_file='annotations.json',
               data_prefix=dict(img='images/'), metainfo=metainfo)
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False,
                        dataset=dataset)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations.json')
test_evaluator = val_evaluator
find_unused_parameters = False
model = dict({model})
train_cfg = dict(max_epochs=1, val_interval=1)
""")
    return config


def train_in_two_processes(config: Path, *options: str) -> dict[str, str]:
    """Train two steps; returns the environment of the processes.

    Both see a finite loss, and both end with the same parameters.
    """
    with config.open('a') as file:
        file.write("\ncustom_imports = dict(imports=['fpt_plugin', "
                   "'helpers.rank_hook'], "
                   'allow_failed_imports=False)\n'
                   "custom_hooks = [dict(type='RankHook')]\n")
    environment = dict(
        PYTHON=sys.executable,
        OMP_NUM_THREADS='1',
        PORT=str(20000 + os.getpid() % 10000),
        PYTHONPATH=os.pathsep.join(
            filter(None, [str(ROOT), str(ROOT / 'tests'),
                          os.environ.get('PYTHONPATH')])))
    run = call('dist_train.sh', str(config), '2', '--work-dir',
               str(config.parent / 'run'),
               *(['--cfg-options', *options] if options else []),
               **environment)
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(config.parent / f'run/rank_{rank}.pt')
                     for rank in range(2))
    for process in (first, second):
        assert len(process['losses']) == 2
        assert all(map(math.isfinite, process['losses']))
    # each of its own images
    assert first['losses'] != second['losses']
    assert first['parameters'].keys() == second['parameters'].keys()
    for name, parameter in first['parameters'].items():
        assert torch.equal(parameter, second['parameters'][name]), name
    return environment


@pytest.mark.slow
def test_two_processes_train_and_test(tmp_path):
    """On a CPU, where mmengine alone would ask for a CUDA device."""
    config = write_config(
        tmp_path, 'backbone=dict(init_cfg=None, frozen_stages=-1)')
    environment = train_in_two_processes(config)
    out = tmp_path / 'predictions.pkl'
    run = call('dist_test.sh', str(config), str(tmp_path / 'run/epoch_1.pth'),
               '2', '--work-dir', str(tmp_path / 'run'), '--out', str(out),
               **environment)
    assert run.returncode == 0, run.stderr
    assert {entry['img_id'] for entry in load(out)} == {1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize('backbone', [
    "type='LambdaResNet', depth='26t'",
    "type='ResNet', depth=50, plugins=[dict(cfg=dict(type='LambdaLayer', "
    "residual=True, norm_cfg=dict(type='GN', num_groups=4)), "
    "stages=(False, False, True, True), position='after_conv2')]"
])
def test_two_processes_train_lambda_layers(tmp_path, backbone):
    train_in_two_processes(write_config(
        tmp_path, f'backbone=dict(_delete_=True, {backbone}), '
        'neck=dict(in_channels=[256, 512, 1024, 2048])'))


@pytest.mark.slow
@pytest.mark.parametrize('name, steps, norms', [
    ('fpt/retinanet_r50_fpt_1x_coco.py', 'max_epochs', ()),
    ('fpt/fcn_r101-d8_ufp-lgt-rt_4xb2-80k_cityscapes-769x769.py', 'max_iters',
     ('backbone', 'neck', 'decode_head', 'auxiliary_head')),
])
def test_two_processes_train_shipped_configs(name, steps, norms, tmp_path):
    """On a CPU, where SyncBN needs another type in several processes."""
    config = small_models.write_config(name, tmp_path)
    assert all(
        Config.fromfile(config).model[part].norm_cfg.type == 'SyncBN'
        for part in norms)
    train_in_two_processes(
        config, f'train_cfg.{steps}=2',
        *(f'model.{part}.norm_cfg.type=BN' for part in norms))


# On a CPU: its device, and full states that are not offloaded from it, which
# torch 2.13 crashes at. With CUDA state_dict_cfg='full' and no device_id.
SHARDED = """
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg=dict(
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
        optim_state_dict_config=dict(
            type='FullOptimStateDictConfig', rank0_only=True)),
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        device_id='cpu',
        auto_wrap_policy=dict(type='wrap_layers')))
"""


@pytest.mark.slow
def test_two_processes_train_sharded(tmp_path):
    """The checkpoint is that of the plain model, whole."""
    config = small_models.write_config('fpt/retinanet_r50_fpt_1x_coco.py', tmp_path)
    with config.open('a') as file:
        file.write(SHARDED)
    work_dir = tmp_path / 'run'
    run = call('dist_train.sh', str(config), '2', '--work-dir', str(work_dir),
               '--cfg-options', 'train_cfg.max_epochs=2',
               'default_hooks.logger.interval=1', PYTHON=sys.executable,
               OMP_NUM_THREADS='1', PORT=str(20000 + os.getpid() % 10000))
    assert run.returncode == 0, run.stderr
    logs = [json.loads(line) for log in work_dir.glob('*/vis_data/scalars.json')
            for line in log.read_text().splitlines()]
    assert len(logs) == 2
    assert all(math.isfinite(log['loss']) for log in logs)
    saved = torch.load(work_dir / 'epoch_2.pth', weights_only=False)['state_dict']
    plain = build(Config.fromfile(config)).state_dict()
    assert saved.keys() == plain.keys()
    assert all(saved[name].shape == plain[name].shape for name in plain)
    # zero at the start, and trained since
    assert all(saved[f'neck.fusions.{i}.out_conv.weight'].any()
               for i in range(3))
