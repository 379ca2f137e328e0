"""The launchers: their commands, and trainings of two processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_models
from helpers.runs import logged_losses
from helpers.shipped_configs import CONFIGS, build
from helpers.synthetic_data import write_coco_squares
from mmengine.config import Config
from mmengine.fileio import load

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
QUICKSTART = CONFIGS / 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'


def call(script: str, *arguments, **environment: str):
    return subprocess.run(
        ['bash', str(TOOLS / script), *map(str, arguments)], capture_output=True,
        text=True, timeout=1800, env={**os.environ, **environment})


@pytest.fixture
def stand_in(tmp_path) -> dict[str, str]:
    """Replace python and srun by scripts that print their arguments, one a line."""
    for name in ('srun', 'python'):
        path = tmp_path / name
        path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
        path.chmod(0o755)
    return dict(PYTHON=str(tmp_path / 'python'),
                PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')


def test_torchrun_on_one_machine(stand_in):
    lines = call('dist_train.sh', 'a config.py', '8', '--amp', '--work-dir',
                 'a folder', **stand_in).stdout.splitlines()
    assert lines == [
        '-m', 'torch.distributed.run', '--nnodes', '1', '--node_rank', '0',
        '--master_addr', '127.0.0.1', '--master_port', '29500',
        '--nproc_per_node', '8', str(TOOLS / 'train.py'), 'a config.py', '--launcher',
        'pytorch', '--amp', '--work-dir', 'a folder']


def test_torchrun_on_many_machines(stand_in):
    lines = call('dist_test.sh', 'a.py', 'b.pth', '4', '--tta', NNODES='3',
                 NODE_RANK='2', MASTER_ADDR='first', PORT='1234',
                 **stand_in).stdout.splitlines()
    for name, value in (('nnodes', '3'), ('node_rank', '2'),
                        ('master_addr', 'first'), ('master_port', '1234'),
                        ('nproc_per_node', '4')):
        assert lines[lines.index(f'--{name}') + 1] == value
    assert lines[-6:] == [
        str(TOOLS / 'test.py'), 'a.py', 'b.pth', '--launcher', 'pytorch', '--tta']


def test_slurm(stand_in):
    lines = call('slurm_test.sh', 'gpu', 'my job', 'a.py', 'b.pth', '--tta',
                 GPUS='4', SRUN_ARGS='--mem 8G', **stand_in).stdout.splitlines()
    assert lines == [
        '-p', 'gpu', '--job-name=my job', '--gres=gpu:4', '--ntasks=4',
        '--ntasks-per-node=4', '--cpus-per-task=5', '--kill-on-bad-exit=1',
        '--mem', '8G', stand_in['PYTHON'], '-u', str(TOOLS / 'test.py'), 'a.py',
        'b.pth', '--tta', '--launcher', 'slurm']


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


# --------------------------------------------------------------- two processes


def launch(script: str, *arguments) -> None:
    """Run a launcher with two processes on this CPU."""
    path = [str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH')]
    run = call(script, *arguments, PYTHON=sys.executable, OMP_NUM_THREADS='1',
               PORT=str(20000 + os.getpid() % 10000),
               PYTHONPATH=os.pathsep.join(filter(None, path)))
    assert run.returncode == 0, run.stderr


def train_in_two_processes(config: Path, *options: str) -> None:
    """Train two steps: losses are finite, and all parameters end equal."""
    with config.open('a') as file:
        file.write(
            "\ncustom_imports = dict(imports=['fpt_plugin', 'helpers.rank_hook'], "
            "allow_failed_imports=False)\ncustom_hooks = [dict(type='RankHook')]\n")
    launch('dist_train.sh', config, '2', '--work-dir', config.parent / 'run',
           *(['--cfg-options', *options] if options else []))
    first, second = (torch.load(config.parent / f'run/rank_{rank}.pt')
                     for rank in range(2))
    for process in (first, second):
        assert len(process['losses']) == 2
        assert all(map(math.isfinite, process['losses']))
    # Each process has its own images.
    assert first['losses'] != second['losses']
    assert first['parameters'].keys() == second['parameters'].keys()
    for name, parameter in first['parameters'].items():
        assert torch.equal(parameter, second['parameters'][name]), name


@pytest.mark.slow
def test_two_processes_train_and_test(tmp_path):
    """Train on a CPU, where plain mmengine needs a CUDA device."""
    write_coco_squares(tmp_path / 'data')
    config = tmp_path / 'config.py'
    config.write_text(f"""
_base_ = {str(QUICKSTART)!r}
data_root = {str(tmp_path / 'data')!r}
dataset = dict(data_root=data_root, ann_file='annotations.json',
               data_prefix=dict(img='images/'), metainfo=dict(classes=('square', )))
loader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
train_dataloader = dict(batch_size=1, **loader)
val_dataloader = test_dataloader = loader
val_evaluator = test_evaluator = dict(ann_file=data_root + '/annotations.json')
find_unused_parameters = False  # every parameter must get a gradient
model = dict(backbone=dict(init_cfg=None, frozen_stages=-1))
train_cfg = dict(max_epochs=1, val_interval=1)
""")
    train_in_two_processes(config)
    out = tmp_path / 'predictions.pkl'
    launch('dist_test.sh', config, tmp_path / 'run/epoch_1.pth', '2', '--work-dir',
           tmp_path / 'run', '--out', out)
    assert {entry['img_id'] for entry in load(out)} == {1, 2, 3, 4}


@pytest.mark.slow
def test_two_processes_train_a_segmentor(tmp_path):
    """Semantic FPN of mmseg with FPT over a LambdaResNet."""
    config = small_models.write_config(next(iter(small_models.SEGMENTORS)), tmp_path)
    with config.open('a') as file:
        file.write("""
model['backbone'] = dict(_delete_=True, type='LambdaResNet', depth='26t')
model['neck']['in_channels'] = [256, 512, 1024, 2048]
find_unused_parameters = False
""")
    train_in_two_processes(config, 'train_cfg.max_iters=2',
                           'model.decode_head.norm_cfg.type=BN')


# The states are not offloaded: torch 2.13 crashes when it offloads from a CPU. With
# CUDA it is state_dict_cfg='full', without device_id.
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
        type='MMFullyShardedDataParallel', device_id='cpu',
        auto_wrap_policy=dict(type='wrap_layers')))
"""


@pytest.mark.slow
def test_two_processes_train_sharded(tmp_path):
    """The checkpoint has the keys and shapes of the plain model."""
    config = small_models.write_config('fpt/retinanet_r50_fpt_1x_coco.py', tmp_path)
    with config.open('a') as file:
        file.write(SHARDED)
    work_dir = tmp_path / 'run'
    launch('dist_train.sh', config, '2', '--work-dir', work_dir, '--cfg-options',
           'train_cfg.max_epochs=2', 'default_hooks.logger.interval=1')
    losses = logged_losses(work_dir)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    saved = torch.load(work_dir / 'epoch_2.pth', weights_only=False)['state_dict']
    plain = build(Config.fromfile(config)).state_dict()
    assert saved.keys() == plain.keys()
    assert all(saved[name].shape == plain[name].shape for name in plain)
    # These start at zero.
    assert all(saved[f'neck.fusions.{i}.out_conv.weight'].any() for i in range(3))
