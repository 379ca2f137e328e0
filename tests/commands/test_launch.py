"""Training and testing from configs, by the flags of the hosts' tools."""

import errno
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import kept_by_name
from helpers.square_detector import DETECTOR
from helpers.synthetic_data import write_coco_squares
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from fpt_plugin.commands import test as test_command
from fpt_plugin.commands import train as train_command
from fpt_plugin.commands.train import prepare_training, train_config
from fpt_plugin.engine import running
from fpt_plugin.engine.running import build_runner
from fpt_plugin.openmmlab.pins import SCOPES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """Leave no scope, logger, rank or working folder to other tests."""
    monkeypatch.chdir(tmp_path)
    # Set, then deleted: so that undoing removes what a test sets.
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.delenv('LOCAL_RANK')
    kept = {cls: dict(cls._instance_dict) for cls in kept_by_name()}
    yield
    for cls in kept_by_name():
        known = kept.get(cls, {})
        for name in [n for n in cls._instance_dict if n not in known]:
            made = cls._instance_dict.pop(name)
            if isinstance(made, logging.Logger):
                for handler in made.handlers:
                    handler.close()


# A config of each host, as far as the flags touch it.
COMMON = """
model = dict(type='Model', neck=dict(type='Neck', width=4))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
test_dataloader = dict(
    dataset=dict(
        type='Dataset',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='Pack')]))
test_evaluator = dict(type='Metric')
visualizer = dict(type='Visualizer')
"""
CONFIGS = dict(
    mmdet=COMMON + """
default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
""",
    mmseg=COMMON + """
default_scope = 'mmseg'
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
""")
TTA = """
tta_model = dict(type='MyTTA', merge=1)
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='MyAug')]
"""


@pytest.fixture(params=SCOPES)
def host(request):
    pytest.importorskip(request.param)
    return request.param


def write(host, *more, name='tiny.py'):
    """Write a host's config, with ``more`` lines at its end."""
    Path(name).write_text('\n'.join([CONFIGS[host], *more]))
    return name


def cfg_to_train(host, *flags, more=()):
    return train_config(train_command.parser().parse_args([write(host, *more), *flags]))


def cfg_to_test(host, *flags, more=()):
    return test_command.test_config(test_command.parser().parse_args(
        [write(host, *more), 'best.pth', *flags]))


# ------------------------------------------------------------------- flags


@pytest.mark.parametrize('flags', [
    [],
    ['--work-dir', 'w'],
    ['--amp'],
    ['--auto-scale-lr'],
    ['--resume'],
    ['--resume', 'epoch_1.pth'],
    ['--launcher', 'pytorch', '--local_rank', '1'],
    ['--launcher', 'slurm', '--local-rank=1'],
    ['--cfg-options', 'a.b=1', 'c=[1,2]', 'd=x,y'],
])
def test_train_takes_the_hosts_flags(flags):
    assert train_command.parser().parse_args(['c.py', *flags]).config == 'c.py'


@pytest.mark.parametrize('flags', [
    [],
    ['--work-dir', 'w'],
    ['--out', 'x.pkl'],
    ['--show'],
    ['--show-dir', 'd'],
    ['--wait-time', '0.5'],
    ['--tta'],
    ['--launcher', 'mpi', '--local_rank', '1'],
    ['--launcher', 'none', '--local-rank=1'],
    ['--cfg-options', 'a.b=1', 'c="[(1,2),(3,4)]"'],
])
def test_test_takes_the_hosts_flags(flags):
    args = test_command.parser().parse_args(['c.py', 'best.pth', *flags])
    assert (args.config, args.checkpoint) == ('c.py', 'best.pth')


@pytest.mark.parametrize(('make', 'needed'), [(train_command.parser, ['c.py']),
                                              (test_command.parser, ['c.py', 'b.pth'])])
def test_unknown_and_missing_arguments_are_refused(make, needed, capsys):
    for flags in ([*needed, '--nonsense'], needed[:-1],
                  [*needed, '--launcher', 'smoke']):
        with pytest.raises(SystemExit):
            make().parse_args(flags)
    capsys.readouterr()


# ------------------------------------------------------------------ shared


def test_the_plain_config_is_unchanged(host):
    cfg = cfg_to_train(host)
    assert cfg.default_scope == host
    assert cfg.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    assert not cfg.get('resume')
    assert cfg.launcher == 'none'


def test_work_dir_by_default_is_the_configs_name(host):
    assert Path(cfg_to_train(host).work_dir) == Path('work_dirs/tiny')
    assert Path(cfg_to_test(host).work_dir) == Path('work_dirs/tiny')


@pytest.mark.parametrize(('flags', 'expected'), [
    ([], 'of_the_config'),
    (['--cfg-options', 'work_dir=of_the_options'], 'of_the_options'),
    (['--work-dir', 'of_the_flag'], 'of_the_flag'),
    (['--work-dir', 'of_the_flag', '--cfg-options', 'work_dir=of_the_options'
      ], 'of_the_flag'),
])
def test_work_dir_by_priority(host, flags, expected):
    more = ["work_dir = 'of_the_config'"]
    assert cfg_to_train(host, *flags, more=more).work_dir == expected
    assert cfg_to_test(host, *flags, more=more).work_dir == expected


def test_cfg_options_override_the_config(host):
    cfg = cfg_to_train(host, '--cfg-options', 'optim_wrapper.optimizer.lr=0.5',
                    'model.neck.scales=[1,2]', 'model.neck.names=a,b',
                    'new.entry=[(1,2),(3,4)]', 'model.neck.type=Other',
                    'flag=True')
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.5)
    assert cfg.model.neck == dict(
        type='Other', width=4, scales=[1, 2], names=['a', 'b'])
    assert [tuple(pair) for pair in cfg.new.entry] == [(1, 2), (3, 4)]
    assert cfg.flag is True


@pytest.mark.parametrize('scope', ["'mmpretrain'", 'None'])
def test_a_scope_of_no_host_is_named(host, scope):
    more = [f'default_scope = {scope}']
    for make in (cfg_to_test, cfg_to_train):
        with pytest.raises(ValueError) as caught:
            make(host, more=more)
        assert f'got {scope}' in str(caught.value)
        assert 'mmdet' in str(caught.value)
        assert 'tiny.py' in str(caught.value)


@pytest.mark.parametrize('scope', ["'mmengine'", "'mmdet'"])
def test_what_a_test_needs_is_named(host, scope):
    """Models of mmengine's scope learn without labels, some are never tested."""
    config = write(host, f'default_scope = {scope}', 'test_dataloader = dict()',
                   'test_evaluator = None')
    args = test_command.parser().parse_args([config, 'x.pth'])
    with pytest.raises(ValueError, match=r'; test_evaluator, test_cfg is missing in '
                       r'.*tiny\.py'):
        test_command.prepare_test(args)


def test_pre_training_has_no_predictions_to_write(host):
    with pytest.raises(ValueError, match='--out writes detections or label maps'):
        cfg_to_test(host, '--out', 'x.pkl', more=["default_scope = 'mmengine'"])


def test_a_config_without_a_scope(host):
    with pytest.raises(ValueError, match='default_scope'):
        cfg_to_train(host, more=['del default_scope'])


CLASSES = dict(mmdet='mmdet.models.FasterRCNN',
               mmseg='mmseg.models.EncoderDecoder')


@pytest.mark.parametrize('scope', ['default_scope = None', ''])
def test_a_config_that_imports_what_it_names(host, scope):
    """Its types are classes; it needs no scope and often has none."""
    module, _, name = CLASSES[host].rpartition('.')
    Path('imports.py').write_text(f"""
from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from {module} import {name}
{scope}
model = dict(type={name})
optim_wrapper = dict(type=OptimWrapper)
""")
    cfg = train_config(train_command.parser().parse_args(['imports.py', '--amp']))
    assert cfg.default_scope == host
    assert cfg.model.type.__name__ == name
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


def test_the_scope_may_come_from_the_options(host):
    cfg = cfg_to_train(
        host, '--cfg-options', f'default_scope={host}',
        more=['default_scope = None'])
    assert cfg.default_scope == host


def test_launcher_and_rank(host, monkeypatch):
    cfg = cfg_to_train(host, '--launcher', 'pytorch', '--local-rank', '3')
    assert cfg.launcher == 'pytorch'
    assert os.environ['LOCAL_RANK'] == '3'
    # torchrun sets it by itself: then it counts.
    monkeypatch.setenv('LOCAL_RANK', '2')
    cfg_to_train(host, '--launcher', 'pytorch')
    assert os.environ['LOCAL_RANK'] == '2'


# ------------------------------------------------------------------- train


def test_amp(host):
    wrapper = cfg_to_train(host, '--amp').optim_wrapper
    assert wrapper == dict(
        type='AmpOptimWrapper',
        loss_scale='dynamic',
        optimizer=dict(type='SGD', lr=0.1))


@pytest.mark.parametrize('more', [
    'optim_wrapper.pop("type")',
    'optim_wrapper["type"] = "AmpOptimWrapper"',
])
def test_amp_over_wrappers_that_fit(host, more):
    more = [more, 'optim_wrapper["loss_scale"] = 512.']
    wrapper = cfg_to_train(host, '--amp', more=more).optim_wrapper
    assert wrapper.type == 'AmpOptimWrapper'
    assert wrapper.loss_scale == 512.  # the config's own


def test_amp_over_another_wrapper_is_refused(host):
    with pytest.raises(ValueError, match="--amp .*'ApexOptimWrapper'"):
        cfg_to_train(
            host, '--amp',
            more=['optim_wrapper["type"] = "ApexOptimWrapper"'])


def test_auto_scale_lr(host):
    more = ['auto_scale_lr = dict(enable=False, base_batch_size=16)']
    assert cfg_to_train(host, more=more).auto_scale_lr.enable is False
    assert cfg_to_train(
        host, '--auto-scale-lr', more=more).auto_scale_lr == dict(
            enable=True, base_batch_size=16)


@pytest.mark.parametrize('more', [
    '', 'auto_scale_lr = dict(enable=False)', 'auto_scale_lr = None'
])
def test_auto_scale_lr_without_a_base_is_refused(host, more):
    with pytest.raises(ValueError, match='base_batch_size'):
        cfg_to_train(host, '--auto-scale-lr', more=[more])


def test_resume_from_the_latest(host, tmp_path):
    for epoch in (1, 2, 3):
        torch.save({}, tmp_path / f'epoch_{epoch}.pth')
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    more = ["load_from = 'pretrained.pth'"]
    cfg = cfg_to_train(host, '--resume', '--work-dir', str(tmp_path), more=more)
    assert cfg.resume is True
    # Not from load_from, as mmengine would.
    assert Path(cfg.load_from).resolve() == tmp_path / 'epoch_2.pth'


def test_a_config_may_resume_by_itself(host, tmp_path):
    torch.save({}, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('gone.pth')
    flags = ['--work-dir', str(tmp_path)]
    with pytest.warns(UserWarning, match='gone.pth'):
        cfg = cfg_to_train(host, *flags, more=['resume = True'])
    assert Path(cfg.load_from) == tmp_path / 'epoch_1.pth'
    named = ["resume = True", "load_from = 'mine.pth'"]
    assert cfg_to_train(host, *flags, more=named).load_from == 'mine.pth'


def test_resume_without_a_checkpoint_keeps_the_weights(host, tmp_path):
    """A run that died before its first epoch begins as the config says."""
    with pytest.warns(UserWarning, match="no checkpoint .*'pretrained.pth'"):
        cfg = cfg_to_train(
            host, '--resume', '--work-dir', str(tmp_path),
            more=["load_from = 'pretrained.pth'"])
    assert not cfg.get('resume')
    assert cfg.load_from == 'pretrained.pth'


def test_resume_of_a_config_that_resumed_before(host, tmp_path):
    """As mmengine dumps it: what it begins with is no run to go on with."""
    with pytest.warns(UserWarning, match="no checkpoint .*'pretrained.pth'"):
        cfg = cfg_to_train(
            host, '--resume', '--work-dir', str(tmp_path),
            more=["load_from = 'pretrained.pth'", 'resume = True'])
    assert cfg.resume is False
    assert cfg.load_from == 'pretrained.pth'


@pytest.mark.parametrize('flags', [[], ['--resume']])
@pytest.mark.filterwarnings('ignore:--resume found no checkpoint')
def test_what_a_training_begins_with_is_whole(host, flags):
    Path('cut.pth').write_bytes(b'PK\x03\x04')
    config = write(host, "load_from = 'cut.pth'")
    with pytest.raises(ValueError, match='cut.pth was cut short'):
        prepare_training(train_command.parser().parse_args([config, *flags]))


def test_resume_from_a_path(host):
    cfg = cfg_to_train(
        host, '--resume', 'epoch_3.pth', more=["load_from = 'pretrained.pth'"])
    assert cfg.resume is True
    assert cfg.load_from == 'epoch_3.pth'


def test_without_resume_the_config_decides(host):
    cfg = cfg_to_train(
        host, more=["load_from = 'pretrained.pth'", 'resume = False'])
    assert cfg.resume is False
    assert cfg.load_from == 'pretrained.pth'


# -------------------------------------------------------------------- test


def test_masks_are_not_merged():
    masks = "model['roi_head'] = dict(mask_head=dict(type='Mask'))"
    with pytest.raises(ValueError, match='--tta .* mask_head'):
        cfg_to_test('mmdet', '--tta', more=[masks])
    cfg = cfg_to_test(
        'mmdet', '--tta', more=[masks, "tta_model = dict(type='Mine')"])
    assert cfg.model.type == 'Mine'


def test_the_checkpoint_is_loaded(host):
    cfg = cfg_to_test(host, more=["load_from = 'pretrained.pth'"])
    assert cfg.load_from == 'best.pth'
    hook = cfg.default_hooks.visualization
    assert not hook.get('draw') and not hook.get('show')
    assert cfg.model.type == 'Model'
    assert cfg.test_evaluator == dict(type='Metric')


def test_out_of_a_segmentor_is_a_folder():
    pytest.importorskip('mmseg')
    assert cfg_to_test('mmseg', '--out', 'maps').test_evaluator == dict(
        type='Metric', output_dir='maps', keep_results=True)


def test_out_of_several_metrics(host='mmseg'):
    pytest.importorskip(host)
    metrics = "test_evaluator = [dict(type='Mine'), dict(type='mmseg.IoUMetric')]"
    first, second = cfg_to_test(host, '--out', 'maps', more=[metrics]).test_evaluator
    assert first == dict(type='Mine')
    assert second == dict(
        type='mmseg.IoUMetric', output_dir='maps', keep_results=True)
    with pytest.raises(ValueError, match=r"--out .*IoUMetric.*\['A', 'B'\]"):
        cfg_to_test(host, '--out', 'maps', more=[
            "test_evaluator = [dict(type='A'), dict(type='B')]"])


def test_out_of_a_detector_is_a_pickle():
    pytest.importorskip('mmdet')
    for out in ('x.pkl', 'x.pickle'):
        assert cfg_to_test('mmdet',
                        '--out', out).test_evaluator == dict(type='Metric')
    for out in ('x.json', 'folder'):
        with pytest.raises(ValueError, match=f"--out .*'{out}'"):
            cfg_to_test('mmdet', '--out', out)


def test_show_dir_of_a_detector():
    pytest.importorskip('mmdet')
    cfg = cfg_to_test('mmdet', '--show-dir', 'painted')
    assert cfg.default_hooks.visualization == dict(
        type='DetVisualizationHook', draw=True, test_out_dir='painted')
    assert cfg.visualizer == dict(type='Visualizer')


def test_show_dir_of_a_segmentor():
    pytest.importorskip('mmseg')
    cfg = cfg_to_test('mmseg', '--show-dir', 'painted')
    assert cfg.default_hooks.visualization == dict(
        type='SegVisualizationHook', draw=True)
    assert cfg.visualizer == dict(type='Visualizer', save_dir='painted')


def test_show_waits(host):
    hook = cfg_to_test(host, '--show', '--wait-time',
                    '0.5').default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time) == (True, True, 0.5)
    assert 'test_out_dir' not in hook


@pytest.mark.parametrize('flags', [['--show'], ['--show-dir', 'painted']])
@pytest.mark.parametrize('more', [
    "default_hooks = dict(logger=dict(type='LoggerHook'))",
    'del default_hooks'
])
def test_painting_needs_the_hook(host, flags, more):
    with pytest.raises(ValueError, match='visualization hook'):
        cfg_to_test(host, *flags, more=[more])


@pytest.mark.filterwarnings('error:the config has no tta')
def test_tta_of_the_config(host):
    cfg = cfg_to_test(host, '--tta', more=[TTA])
    assert cfg.model == dict(
        type='MyTTA',
        merge=1,
        module=dict(type='Model', neck=dict(type='Neck', width=4)))
    assert [t.type for t in cfg.test_dataloader.dataset.pipeline
            ] == ['LoadImageFromFile', 'MyAug']


def test_without_the_flag_no_tta(host):
    cfg = cfg_to_test(host, more=[TTA])
    assert cfg.model.type == 'Model'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'Pack'


def test_tta_of_a_detector_has_defaults():
    pytest.importorskip('mmdet')
    with pytest.warns(UserWarning) as caught:
        cfg = cfg_to_test('mmdet', '--tta')
    messages = [str(w.message) for w in caught]
    assert any('tta_model' in m for m in messages)
    assert any('tta_pipeline' in m for m in messages)
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.tta_cfg.nms == dict(type='nms', iou_threshold=0.5)
    assert cfg.model.module.type == 'Model'
    load, augment = cfg.test_dataloader.dataset.pipeline
    assert load.type == 'LoadImageFromFile'
    assert augment.type == 'TestTimeAug'
    flips, pack = augment.transforms
    assert [(f.type, f.prob) for f in flips] == [('RandomFlip', 1.),
                                                 ('RandomFlip', 0.)]
    # Without these the merging cannot turn the mirrored boxes back.
    assert {'flip', 'flip_direction'} <= set(pack[0].meta_keys)


def test_tta_of_a_detector_fills_in_what_is_missing():
    pytest.importorskip('mmdet')
    with pytest.warns(UserWarning, match='tta_pipeline'):
        cfg = cfg_to_test('mmdet', '--tta', more=[TTA, 'del tta_pipeline'])
    assert cfg.model.type == 'MyTTA'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'
    with pytest.warns(UserWarning, match='tta_model'):
        cfg = cfg_to_test('mmdet', '--tta', more=[TTA, 'del tta_model'])
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'MyAug'


@pytest.mark.parametrize(('more', 'missing', 'given'), [
    ('', ['tta_model', 'tta_pipeline'], []),
    (TTA + 'del tta_model', ['tta_model'], ['tta_pipeline']),
    (TTA + 'del tta_pipeline', ['tta_pipeline'], ['tta_model']),
])
def test_tta_of_a_segmentor_is_the_configs(more, missing, given):
    pytest.importorskip('mmseg')
    with pytest.raises(ValueError, match='--tta') as caught:
        cfg_to_test('mmseg', '--tta', more=[more])
    assert all(name in str(caught.value) for name in missing)
    assert not any(name in str(caught.value) for name in given)


# ------------------------------------------------------------------- build


def test_the_configs_runner_type_is_built(host, monkeypatch):

    class OwnRunner(Runner):

        @classmethod
        def from_cfg(cls, cfg):
            return cls, cfg

    monkeypatch.setitem(RUNNERS._module_dict, 'OwnRunner', OwnRunner)
    cfg = cfg_to_train(host, more=["runner_type = 'OwnRunner'"])
    cls, given = build_runner(cfg)
    assert cls is OwnRunner
    assert given.model == cfg.model


def test_without_one_it_is_mmengines(host, monkeypatch):
    monkeypatch.setattr(
        running.Runner, 'from_cfg', classmethod(lambda cls, cfg: (cls, cfg)))
    cfg = cfg_to_train(host)
    assert build_runner(cfg) == (Runner, cfg)


def test_checkpoints_are_kept_whole(host):
    settings = "type='CheckpointHook', interval=3, save_best='auto'"
    cfg = cfg_to_train(
        host, more=[f'default_hooks = dict(checkpoint=dict({settings}))'])
    running.keep_checkpoints_whole(cfg)
    assert cfg.default_hooks.checkpoint == dict(
        type='fpt_plugin.WholeCheckpointHook', interval=3, save_best='auto')
    cfg.pop('default_hooks')
    running.keep_checkpoints_whole(cfg)
    assert cfg.default_hooks == dict(
        checkpoint=dict(type='fpt_plugin.WholeCheckpointHook'))


def test_checkpoints_are_kept_whole_wherever_the_hook_is(host):
    cfg = cfg_to_train(host, more=[
        "custom_hooks = [dict(type='Mine'), dict(type='CheckpointHook')]"])
    assert 'checkpoint' not in cfg.default_hooks  # others are there
    running.keep_checkpoints_whole(cfg)
    assert cfg.default_hooks.checkpoint.type == 'fpt_plugin.WholeCheckpointHook'
    assert cfg.default_hooks.visualization
    assert [hook.type for hook in cfg.custom_hooks] == [
        'Mine', 'fpt_plugin.WholeCheckpointHook']


@pytest.mark.parametrize('strategy, reads', [
    (None, True), ('FSDPStrategy', True), ('DeepSpeedStrategy', False)])
def test_checkpoints_of_deepspeed_are_pickles(strategy, reads, monkeypatch):
    called = []
    monkeypatch.setattr(running, 'refuse_pickles', lambda: called.append(1))
    monkeypatch.setattr(
        running.Runner, 'from_cfg', classmethod(lambda cls, cfg: cfg))
    cfg = cfg_to_train('mmdet', more=[
        f'strategy = {strategy and dict(type=strategy)}'])
    build_runner(cfg)
    assert bool(called) == reads


@pytest.mark.parametrize('hook', [None, dict(type='Mine')])
def test_the_users_own_hook_saves(host, hook):
    cfg = cfg_to_train(host, more=[f'default_hooks = dict(checkpoint={hook})'])
    running.keep_checkpoints_whole(cfg)
    assert cfg.default_hooks.checkpoint == hook


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def free(folder):
        return SimpleNamespace(free=0 if folder == str(tmp_path) else 2**30)

    monkeypatch.setattr(running.shutil, 'disk_usage', free)
    with pytest.raises(OSError, match=rf"--resume: '{tmp_path}'$"), \
            running.naming_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(OSError, match=r"No space .*--resume: 'work/a.pth'"), \
            running.naming_full_disk('work'):
        raise OSError(errno.ENOSPC, 'No space left on device', 'work/a.pth')
    with pytest.raises(FileNotFoundError, match="No such file: 'a.png'"), \
            running.naming_full_disk('work'):
        raise FileNotFoundError(errno.ENOENT, 'No such file', 'a.png')


def test_where_a_full_disk_may_be(tmp_path, monkeypatch):
    """Nothing is full now: all that were written to are named."""
    monkeypatch.setattr(running.shutil, 'disk_usage',
                        lambda folder: SimpleNamespace(free=2**30))
    with pytest.raises(OSError, match=f'{tmp_path} or .*{gettempdir()}'), \
            running.naming_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, 'No space left on device')


# ------------------------------------------------------------- end to end

def launch_training(*flags, name):
    """Train by the tool's own functions, under a name of its own.

    mmengine keeps its logs by the runs' names; by default these are the
    second in which a run began.
    """
    args = train_command.parser().parse_args([
        'detector.py', *flags, '--cfg-options', f'experiment_name={name}',
        *([] if name != 'begun' else ['train_cfg.max_epochs=1'])
    ])
    return train_command.main(args)


def validation(runner):
    """The metrics of the last validation by their names."""
    return {
        name[len('val/'):]: buffer.current()
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith('val/coco')
    }


def test_train_resume_and_test(monkeypatch):
    """Interrupted after epoch 1, resumed to epoch 2, tested by the tool."""
    pytest.importorskip('mmdet')
    write_coco_squares('data')
    Path('detector.py').write_text(DETECTOR)

    # Training: the neck is found and learns.
    begun = launch_training('--work-dir', 'work', name='begun')
    assert begun.epoch == 1
    assert Path('work/epoch_1.pth').is_file()
    assert not Path('work/epoch_2.pth').exists()
    assert type(begun.model.neck).__name__ == 'FPT'

    # Resuming: what the first run knew goes on in the second one.
    resumed = launch_training('--work-dir', 'work', '--resume', name='resumed')
    assert resumed.epoch == 2
    assert resumed.iter == 4
    losses, _ = resumed.message_hub.get_scalar('train/loss').data
    first, _ = begun.message_hub.get_scalar('train/loss').data
    assert len(first) == 2
    assert len(losses) == 4  # the first epoch's were read, not repeated
    assert losses[:2].tolist() == first.tolist()
    assert Path('work/epoch_2.pth').is_file()

    # The result is that of a training that was never interrupted.
    straight = launch_training('--work-dir', 'straight', name='straight')
    assert straight.message_hub.get_scalar(
        'train/loss').data[0] == pytest.approx(losses, rel=1e-4)
    weights = torch.load('work/epoch_2.pth', weights_only=True)['state_dict']
    for name, tensor in straight.model.state_dict().items():
        torch.testing.assert_close(
            weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    # The neck's last convolutions start at zero: they have learnt.
    assert all(
        tensor.abs().max() > 0 for name, tensor in weights.items()
        if name.startswith('neck.fusions.') and name.endswith('.weight'))

    # Testing, as the user does it.
    environ = dict(os.environ)
    environ['PYTHONPATH'] = os.pathsep.join(
        filter(None, [str(ROOT), environ.get('PYTHONPATH')]))
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools' / 'test.py'), 'detector.py', 'work/epoch_2.pth',
            '--work-dir', 'tested', '--out', 'tested/x.pkl', '--show-dir',
            'painted'
        ],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]

    dumped, = Path('tested').glob('*/*.json')
    metrics = json.loads(dumped.read_text())
    expected = validation(resumed)
    # Anchors lie where the squares do, so even this detector finds some.
    assert expected['coco/bbox_mAP'] > 0
    assert {name: metrics.get(name) for name in expected} == expected

    predictions = pickle.loads(Path('tested/x.pkl').read_bytes())
    assert len(predictions) == 4
    resumed.model.eval()
    with torch.no_grad():
        for batch, found in zip(resumed.val_dataloader, predictions):
            own, = resumed.model.val_step(batch)
            assert own.img_id == found['img_id']
            assert len(found['pred_instances']['scores']) > 0
            for key in ('scores', 'bboxes'):
                torch.testing.assert_close(found['pred_instances'][key],
                                           own.pred_instances[key])
    painted = Path('tested').glob('*/painted/*')
    assert sorted(path.stem.split('_')[0] for path in painted) == [
        '001', '002', '003', '004'
    ]
