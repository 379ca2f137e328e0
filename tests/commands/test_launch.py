"""Training and testing with the arguments of the tools of mmdet and mmseg."""

import errno
import os
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace

import pytest
import torch
from helpers import runs
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
def clean(tmp_path):
    """Run each test in its own folder; scopes, loggers and ranks are removed."""
    with runs.alone(), runs.inside(tmp_path):
        yield


# A config with the settings that arguments change.
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
SCOPE = """
default_scope = '{}'
default_hooks = dict(visualization=dict(type='VisualizationHook'))
"""
TTA = """
tta_model = dict(type='MyTTA', merge=1)
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='MyAug')]
"""


@pytest.fixture(params=SCOPES)
def host(request):
    return request.param


def write(host, *more, name='tiny.py'):
    """Write a library's config, with ``more`` lines at its end."""
    Path(name).write_text('\n'.join([COMMON, SCOPE.format(host), *more]))
    return name


def cfg_to_train(host, *flags, more=()):
    return train_config(train_command.parser().parse_args([write(host, *more), *flags]))


def cfg_to_test(host, *flags, more=()):
    return test_command.test_config(test_command.parser().parse_args(
        [write(host, *more), 'best.pth', *flags]))


# ------------------------------------------------------------------- flags


@pytest.mark.parametrize('make, needed, flags', [
    (train_command.parser, ['c.py'], [
        '', '--amp', '--auto-scale-lr', '--resume', '--resume epoch_1.pth']),
    (test_command.parser, ['c.py', 'b.pth'], [
        '', '--out x.pkl', '--show', '--show-dir d', '--wait-time 0.5', '--tta'])])
def test_arguments_of_the_libraries_tools(make, needed, flags):
    for text in [*flags, '--work-dir w', '--launcher pytorch --local_rank 1',
                 '--launcher slurm --local-rank=1', '--launcher mpi',
                 '--cfg-options a.b=1 c=[1,2] d=x,y e="[(1,2),(3,4)]"']:
        assert make().parse_args([*needed, *text.split()]).config == 'c.py'
    for wrong in ([*needed, '--nonsense'], needed[:-1],
                  [*needed, '--launcher', 'smoke']):
        with pytest.raises(SystemExit):
            make().parse_args(wrong)


# ------------------------------------------------------------------ shared


def test_without_arguments(host):
    cfg = cfg_to_train(host)
    assert cfg.default_scope == host
    assert cfg.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    assert not cfg.get('resume')
    assert cfg.launcher == 'none'
    cfg = cfg_to_test(host, more=["load_from = 'pretrained.pth'"])
    assert cfg.load_from == 'best.pth'
    hook = cfg.default_hooks.visualization
    assert not hook.get('draw') and not hook.get('show')
    assert cfg.model.type == 'Model'
    assert cfg.test_evaluator == dict(type='Metric')


@pytest.mark.parametrize(('more', 'flags', 'expected'), [
    ('', [], './work_dirs/tiny'),
    ("work_dir = 'config'", [], 'config'),
    ("work_dir = 'config'", ['--cfg-options', 'work_dir=options'], 'options'),
    ("work_dir = 'config'", ['--work-dir', 'flag'], 'flag'),
    ("work_dir = 'config'", ['--work-dir', 'flag', '--cfg-options',
                             'work_dir=options'], 'flag'),
])
def test_work_dir_by_priority(host, more, flags, expected):
    assert cfg_to_train(host, *flags, more=[more]).work_dir == expected
    assert cfg_to_test(host, *flags, more=[more]).work_dir == expected


def test_cfg_options_override_the_config(host):
    cfg = cfg_to_train(host, '--cfg-options', 'optim_wrapper.optimizer.lr=0.5',
                       'model.neck.scales=[1,2]', 'model.neck.names=a,b',
                       'new.entry=[(1,2),(3,4)]', 'model.neck.type=Other',
                       'flag=True', f'default_scope={host}',
                       more=['default_scope = None'])
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.5)
    assert cfg.model.neck == dict(
        type='Other', width=4, scales=[1, 2], names=['a', 'b'])
    assert [tuple(pair) for pair in cfg.new.entry] == [(1, 2), (3, 4)]
    assert cfg.flag is True and cfg.default_scope == host


@pytest.mark.parametrize('line, got', [
    ("default_scope = 'mmpretrain'", "'mmpretrain'"),
    ('default_scope = None', 'None'), ('del default_scope', 'None')])
def test_an_unknown_scope_is_refused(host, line, got):
    for make in (cfg_to_test, cfg_to_train):
        with pytest.raises(ValueError, match=rf'mmdet.*got {got} .*tiny\.py'):
            make(host, more=[line])


@pytest.mark.parametrize('scope', ["'mmengine'", "'mmdet'"])
def test_missing_parts_of_a_test_are_named(host, scope):
    """Some models that are pre-trained without labels are never tested."""
    config = write(host, f'default_scope = {scope}', 'test_dataloader = dict()',
                   'test_evaluator = None')
    args = test_command.parser().parse_args([config, 'x.pth'])
    with pytest.raises(ValueError, match=r'; test_evaluator, test_cfg is missing in '
                       r'.*tiny\.py'):
        test_command.prepare_test(args)


CLASSES = dict(mmdet='mmdet.models.FasterRCNN',
               mmseg='mmseg.models.EncoderDecoder')


@pytest.mark.parametrize('scope', ['default_scope = None', ''])
def test_a_config_with_imported_classes(host, scope):
    """It needs no scope, and often has none."""
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


def test_launcher_and_rank(host, monkeypatch):
    cfg = cfg_to_train(host, '--launcher', 'pytorch', '--local-rank', '3')
    assert cfg.launcher == 'pytorch'
    assert os.environ['LOCAL_RANK'] == '3'
    # The value that torchrun sets takes precedence.
    monkeypatch.setenv('LOCAL_RANK', '2')
    cfg_to_train(host, '--launcher', 'pytorch')
    assert os.environ['LOCAL_RANK'] == '2'


# ------------------------------------------------------------------- train


@pytest.mark.parametrize('more, loss_scale', [
    ([], 'dynamic'),
    (['optim_wrapper.pop("type")', 'optim_wrapper["loss_scale"] = 512.'], 512.),
    (['optim_wrapper["type"] = "AmpOptimWrapper"'], 'dynamic')])
def test_amp(host, more, loss_scale):
    assert cfg_to_train(host, '--amp', more=more).optim_wrapper == dict(
        type='AmpOptimWrapper', loss_scale=loss_scale,
        optimizer=dict(type='SGD', lr=0.1))


def test_auto_scale_lr(host):
    more = ['auto_scale_lr = dict(enable=False, base_batch_size=16)']
    assert cfg_to_train(host, more=more).auto_scale_lr.enable is False
    assert cfg_to_train(
        host, '--auto-scale-lr', more=more).auto_scale_lr == dict(
            enable=True, base_batch_size=16)


@pytest.mark.parametrize('flag, more, words', [
    ('--amp', 'optim_wrapper["type"] = "Apex"', "--amp .*'Apex'"),
    ('--auto-scale-lr', '', 'base_batch_size'),
    ('--auto-scale-lr', 'auto_scale_lr = dict(enable=False)', 'base_batch_size'),
    ('--auto-scale-lr', 'auto_scale_lr = None', 'base_batch_size')])
def test_configs_that_do_not_fit_an_argument(host, flag, more, words):
    with pytest.raises(ValueError, match=words):
        cfg_to_train(host, flag, more=[more])


def test_resume_from_the_latest(host, tmp_path):
    for epoch in (1, 2, 3):
        torch.save({}, tmp_path / f'epoch_{epoch}.pth')
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    more = ["load_from = 'pretrained.pth'"]
    cfg = cfg_to_train(host, '--resume', '--work-dir', str(tmp_path), more=more)
    assert cfg.resume is True
    # Not from load_from, as mmengine would.
    assert Path(cfg.load_from).resolve() == tmp_path / 'epoch_2.pth'
    cfg = cfg_to_train(host, '--resume', 'epoch_3.pth', more=more)
    assert (cfg.resume, cfg.load_from) == (True, 'epoch_3.pth')
    cfg = cfg_to_train(host, more=[*more, 'resume = False'])
    assert (cfg.resume, cfg.load_from) == (False, 'pretrained.pth')


def test_resume_in_the_config(host, tmp_path):
    torch.save({}, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('gone.pth')
    flags = ['--work-dir', str(tmp_path)]
    with pytest.warns(UserWarning, match='gone.pth'):
        cfg = cfg_to_train(host, *flags, more=['resume = True'])
    assert Path(cfg.load_from) == tmp_path / 'epoch_1.pth'
    named = ["resume = True", "load_from = 'mine.pth'"]
    assert cfg_to_train(host, *flags, more=named).load_from == 'mine.pth'


@pytest.mark.parametrize('more', [[], ['resume = True']])
def test_resume_without_a_checkpoint_keeps_load_from(host, tmp_path, more):
    """A run that ended before its first checkpoint starts again.

    mmengine writes ``resume`` into the config of a resumed run.
    """
    with pytest.warns(UserWarning, match="no checkpoint .*'pretrained.pth'"):
        cfg = cfg_to_train(
            host, '--resume', '--work-dir', str(tmp_path),
            more=["load_from = 'pretrained.pth'", *more])
    assert not cfg.get('resume')
    assert cfg.load_from == 'pretrained.pth'


@pytest.mark.parametrize('flags', [[], ['--resume']])
@pytest.mark.filterwarnings('ignore:--resume found no checkpoint')
def test_a_damaged_initial_checkpoint(host, flags):
    Path('cut.pth').write_bytes(b'PK\x03\x04')
    config = write(host, "load_from = 'cut.pth'")
    with pytest.raises(ValueError, match='cut.pth was cut short'):
        prepare_training(train_command.parser().parse_args([config, *flags]))


# -------------------------------------------------------------------- test


def test_out_of_a_segmentor_is_a_folder():
    written = dict(output_dir='maps', keep_results=True)
    assert cfg_to_test('mmseg', '--out', 'maps').test_evaluator == dict(
        type='Metric', **written)
    metrics = "test_evaluator = [dict(type='Mine'), dict(type='mmseg.IoUMetric')]"
    assert cfg_to_test('mmseg', '--out', 'maps', more=[metrics]).test_evaluator == [
        dict(type='Mine'), dict(type='mmseg.IoUMetric', **written)]
    with pytest.raises(ValueError, match=r"--out .*IoUMetric.*\['A', 'B'\]"):
        cfg_to_test('mmseg', '--out', 'maps', more=[
            "test_evaluator = [dict(type='A'), dict(type='B')]"])


def test_out_of_a_detector_is_a_pickle():
    for out in ('x.pkl', 'x.pickle'):
        assert cfg_to_test(
            'mmdet', '--out', out).test_evaluator == dict(type='Metric')
    for out in ('x.json', 'folder'):
        with pytest.raises(ValueError, match=f"--out .*'{out}'"):
            cfg_to_test('mmdet', '--out', out)
    with pytest.raises(ValueError, match='--out writes detections or label maps'):
        cfg_to_test('mmdet', '--out', 'x.pkl', more=["default_scope = 'mmengine'"])


def test_show(host):
    hook = cfg_to_test(
        host, '--show', '--wait-time', '0.5').default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time) == (True, True, 0.5)
    assert 'test_out_dir' not in hook
    cfg = cfg_to_test(host, '--show-dir', 'painted')
    hook, visualizer = cfg.default_hooks.visualization, cfg.visualizer
    assert hook.draw and not hook.get('show')
    assert (hook.get('test_out_dir'), visualizer.get('save_dir')) == (
        ('painted', None) if host == 'mmdet' else (None, 'painted'))
    for line in ("default_hooks = dict(logger=dict(type='LoggerHook'))",
                 'del default_hooks'):
        for flags in (['--show'], ['--show-dir', 'painted']):
            with pytest.raises(ValueError, match='visualization hook'):
                cfg_to_test(host, *flags, more=[line])


@pytest.mark.filterwarnings('error:the config has no tta')
def test_tta_of_the_config(host):
    cfg = cfg_to_test(host, '--tta', more=[TTA])
    assert cfg.model == dict(
        type='MyTTA',
        merge=1,
        module=dict(type='Model', neck=dict(type='Neck', width=4)))
    assert [t.type for t in cfg.test_dataloader.dataset.pipeline
            ] == ['LoadImageFromFile', 'MyAug']
    cfg = cfg_to_test(host, more=[TTA])
    assert cfg.model.type == 'Model'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'Pack'


def test_defaults_of_tta_for_detectors():
    with pytest.warns(UserWarning, match='tta_model'), \
            pytest.warns(UserWarning, match='tta_pipeline'):
        cfg = cfg_to_test('mmdet', '--tta')
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.tta_cfg.nms == dict(type='nms', iou_threshold=0.5)
    assert cfg.model.module.type == 'Model'
    load, augment = cfg.test_dataloader.dataset.pipeline
    assert load.type == 'LoadImageFromFile'
    assert augment.type == 'TestTimeAug'
    flips, pack = augment.transforms
    assert [(f.type, f.prob) for f in flips] == [('RandomFlip', 1.),
                                                 ('RandomFlip', 0.)]
    # Merging needs them to flip the boxes back.
    assert {'flip', 'flip_direction'} <= set(pack[0].meta_keys)
    for missing, *types in (('tta_pipeline', 'MyTTA', 'TestTimeAug'),
                            ('tta_model', 'DetTTAModel', 'MyAug')):
        with pytest.warns(UserWarning, match=missing):
            cfg = cfg_to_test('mmdet', '--tta', more=[TTA, f'del {missing}'])
        last = cfg.test_dataloader.dataset.pipeline[-1]
        assert [cfg.model.type, last.type] == types
    masks = "model['roi_head'] = dict(mask_head=dict(type='Mask'))"
    with pytest.raises(ValueError, match='--tta .* mask_head'):
        cfg_to_test('mmdet', '--tta', more=[masks])
    cfg = cfg_to_test(
        'mmdet', '--tta', more=[masks, "tta_model = dict(type='Mine')"])
    assert cfg.model.type == 'Mine'


@pytest.mark.parametrize(('more', 'missing', 'given'), [
    ('', ['tta_model', 'tta_pipeline'], []),
    (TTA + 'del tta_model', ['tta_model'], ['tta_pipeline']),
    (TTA + 'del tta_pipeline', ['tta_pipeline'], ['tta_model']),
])
def test_tta_of_a_segmentor_has_no_defaults(more, missing, given):
    with pytest.raises(ValueError, match='--tta') as caught:
        cfg_to_test('mmseg', '--tta', more=[more])
    assert all(name in str(caught.value) for name in missing)
    assert not any(name in str(caught.value) for name in given)


# ------------------------------------------------------------------- build


def test_the_type_of_the_runner(host, monkeypatch):
    monkeypatch.setattr(
        running.Runner, 'from_cfg', classmethod(lambda cls, cfg: (cls, cfg.model)))
    own = type('OwnRunner', (Runner, ), {})
    monkeypatch.setitem(RUNNERS._module_dict, 'OwnRunner', own)
    for more, kind in (([], Runner), (["runner_type = 'OwnRunner'"], own)):
        cfg = cfg_to_train(host, more=more)
        assert build_runner(cfg) == (kind, cfg.model)


WHOLE = dict(type='fpt_plugin.WholeCheckpointHook')


@pytest.mark.parametrize('given, found', [
    (dict(checkpoint=dict(type='CheckpointHook', interval=3, save_best='auto')),
     dict(checkpoint=dict(WHOLE, interval=3, save_best='auto'))),
    (dict(visualization=dict(type='A')),
     dict(visualization=dict(type='A'), checkpoint=WHOLE)),
    (None, dict(checkpoint=WHOLE)),
    *((dict(checkpoint=own), dict(checkpoint=own)) for own in (
        None, dict(type='Mine')))])
def test_the_checkpoint_hook_is_replaced(host, given, found):
    cfg = cfg_to_train(host, more=[
        "custom_hooks = [dict(type='Mine'), dict(type='CheckpointHook')]",
        f'default_hooks = {given}' if given else 'del default_hooks'])
    running.keep_checkpoints_whole(cfg)
    assert cfg.default_hooks == found
    assert cfg.custom_hooks == [dict(type='Mine'), WHOLE]


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


@pytest.mark.parametrize('full, error, words', [
    (True, OSError(errno.ENOSPC, 'No space'), "--resume: '{0}'$"),
    # If there is space again, all folders that were written to are named.
    (False, OSError(errno.ENOSPC, 'No space'), '{0} or .*' + gettempdir()),
    (True, OSError(errno.ENOSPC, 'No space', 'work/a.pth'),
     "No space.*--resume: 'work/a.pth'"),
    (True, FileNotFoundError(errno.ENOENT, 'No such file', 'a.png'),
     "No such file: 'a.png'")])
def test_a_full_disk_is_named(tmp_path, monkeypatch, full, error, words):
    monkeypatch.setattr(
        running.shutil, 'disk_usage', lambda folder: SimpleNamespace(
            free=0 if full and folder == str(tmp_path) else 2**30))
    with pytest.raises(type(error), match=words.format(tmp_path)), \
            running.naming_full_disk(tmp_path):
        raise error
