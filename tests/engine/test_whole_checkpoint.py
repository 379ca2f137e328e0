"""Checkpoints are written completely before older ones are deleted."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import alone
from helpers.toy_runs import Noise, train, untrained
from mmengine.hooks import CheckpointHook

from fpt_plugin.engine import whole_checkpoint
from fpt_plugin.engine.resume import newest_checkpoint

WHOLE = 'fpt_plugin.WholeCheckpointHook'
SETTINGS = {
    'plain': {},
    'one': dict(max_keep_ckpts=1),
    'two, best': dict(max_keep_ckpts=2, save_best='acc'),
    'bests': dict(max_keep_ckpts=1, save_best=['acc', 'loss']),
    'elsewhere': dict(out_dir='elsewhere', max_keep_ckpts=1),
    'names': dict(filename_tmpl='mine-{}.pth', max_keep_ckpts=1, interval=2),
    'iterations': dict(by_epoch=False, interval=2, max_keep_ckpts=2),
    'published': dict(
        save_best='acc', published_keys=['meta', 'state_dict'],
        save_optimizer=False),
    'local': dict(backend_args=dict(backend='local'), max_keep_ckpts=1),
    'disk': dict(file_client_args=dict(backend='disk'), max_keep_ckpts=1),
    'begins late': dict(save_begin=2, save_last=False),
}
SCORES = (1., 3., 2.)


def tree(folder):
    """List checkpoints and the pointer; published ones without their hash."""
    found = {path.name.split('-')[0] if 'mine' not in path.name else path.name
             for path in Path(folder).rglob('*')
             if path.suffix == '.pth' or path.name == 'last_checkpoint'
             or 'partial' in path.name}
    return sorted(found)


def hub(runner):
    info = runner.message_hub.runtime_info
    return {key: info[key] for key in info
            if key.startswith(('keep_ckpt', 'best', 'last_ckpt'))}


@pytest.mark.parametrize('name', SETTINGS)
def test_the_remaining_files_are_mmengines(name, tmp_path, monkeypatch):
    trees, hubs, pointers = [], [], []
    for kind in ('CheckpointHook', WHOLE):
        (tmp_path / kind).mkdir()
        monkeypatch.chdir(tmp_path / kind)
        runner = train(
            'run', checkpoint=dict(SETTINGS[name], type=kind), scores=SCORES)
        trees.append(tree('.'))
        hubs.append(hub(runner))
        pointers.append(Path('run/last_checkpoint').read_text().replace(
            kind, 'HOOK'))
    assert trees[0] == trees[1] and len(trees[0]) > 1
    assert pointers[0] == pointers[1]
    assert str(hubs[0]).replace('CheckpointHook', 'HOOK') == \
        str(hubs[1]).replace(WHOLE, 'HOOK')


def full_disk(path):
    """Return an ``open`` that fails after half of the bytes of one file."""
    plain = open

    @contextmanager
    def half(file):

        def write(content):
            file.write(content[:len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with file:
            yield SimpleNamespace(write=write)

    def opening(name, mode='r', *args, **kwargs):
        file = plain(name, mode, *args, **kwargs)
        return half(file) if Path(name).name == path and 'w' in mode else file

    return opening


@pytest.mark.parametrize('failing', ['epoch_2.pth', 'best_acc_epoch_2.pth',
                                     'last_checkpoint'])
def test_a_full_disk_keeps_earlier_checkpoints(failing, tmp_path, monkeypatch):
    settings = dict(max_keep_ckpts=1, save_best='acc')
    first = train(tmp_path, checkpoint=dict(settings, type=WHOLE), scores=[1.],
                  loop=dict(by_epoch=True, max_epochs=1))
    pointer = (tmp_path / 'last_checkpoint').read_text()
    assert Path(pointer).name == 'epoch_1.pth'
    monkeypatch.setattr('builtins.open', full_disk(failing))
    with pytest.raises(OSError, match='No space left') as error:
        train(tmp_path, checkpoint=dict(settings, type=WHOLE), scores=[2.] * 2,
              resume=True)
    monkeypatch.undo()
    assert Path(error.value.filename).name == failing
    assert failing in str(error.value)
    assert not list(tmp_path.glob('.*.partial'))
    # The checkpoints of the first run are complete.
    left = torch.load((tmp_path / 'last_checkpoint').read_text())
    if failing != 'best_acc_epoch_2.pth':
        assert (tmp_path / 'last_checkpoint').read_text() == pointer
        assert torch.equal(left['state_dict']['weight'], first.model.weight)
    best = left['message_hub']['runtime_info']['best_ckpt']
    assert Path(best).name == 'best_acc_epoch_1.pth'
    assert 'state_dict' in torch.load(best)


@pytest.mark.parametrize('kind', ['CheckpointHook', WHOLE])
def test_the_resumed_training_deletes_outdated_files(kind, tmp_path, monkeypatch):
    """If the run was killed before it deleted the first checkpoint."""
    settings = dict(max_keep_ckpts=1)
    monkeypatch.setattr(whole_checkpoint.WholeCheckpointHook, '_delete',
                        lambda *_: None)
    train(tmp_path, checkpoint=dict(settings, type=WHOLE),
          loop=dict(by_epoch=True, max_epochs=2))
    assert tree(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'last_checkpoint']
    monkeypatch.undo()
    train(tmp_path, checkpoint=dict(settings, type=kind), resume=True)
    assert tree(tmp_path) == ['epoch_3.pth', 'last_checkpoint']


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    hook = whole_checkpoint.WholeCheckpointHook(interval=1, max_keep_ckpts=1)
    runner = train(tmp_path, checkpoint=dict(type=WHOLE))
    hook.before_train(runner)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(runner, 'save_checkpoint', lambda *_, **__: None)
    monkeypatch.setattr(whole_checkpoint, 'is_main_process', lambda: False)
    for step in (1, 2):
        hook._save_checkpoint_with_step(runner, step, {})
    assert list(hook.keep_ckpt_ids) == [2]
    assert before == {path: path.stat().st_mtime_ns
                      for path in tmp_path.iterdir()}


OURS = dict(backend_args=dict(backend=whole_checkpoint.BACKEND))


@pytest.mark.parametrize('settings, found', [
    ({}, OURS), (dict(out_dir='folder'), OURS),
    (dict(backend_args=dict(backend='local')), OURS),
    (dict(file_client_args=dict(backend='disk')), OURS),
    (dict(out_dir='s3://bucket'), {}),
    *((settings, settings) for settings in (
        dict(backend_args=dict(backend='petrel')),
        dict(file_client_args=dict(backend='petrel'))))])
def test_mmengine_writes_to_other_storage(settings, found, monkeypatch):
    monkeypatch.setattr(CheckpointHook, 'before_train', lambda *_: None)
    hook = whole_checkpoint.WholeCheckpointHook(**settings)
    hook.before_train(SimpleNamespace(work_dir='run'))
    assert hook.backend_args == found.get('backend_args')
    assert hook.file_client_args == found.get('file_client_args')


@pytest.mark.parametrize('palette, readable', [
    ([[255, 0, 0]], True),
    (np.array([[255, 0, 0]], dtype=np.uint8), True),
    (np.array(['red']), False),
    (np.array([None]), False),
])
def test_unsafe_content_gives_a_warning(palette, readable, tmp_path, monkeypatch,
                                        recwarn):
    monkeypatch.setitem(Noise.metainfo, 'palette', palette)
    train(tmp_path / 'run', checkpoint=dict(type=WHOLE))
    found = [str(w.message) for w in recwarn if 'resume' in str(w.message)]
    if readable:
        assert not found
        train(tmp_path / 'on', checkpoint=dict(type=WHOLE), resume=True,
              load_from=str(tmp_path / 'run/epoch_1.pth'))
    else:
        warning, = found  # once, for the first of three
        assert 'run/epoch_1.pth holds objects' in warning
        assert 'arrays of numbers' in warning and 'metainfo' in warning


# mmengine's own hook fails here with save_best.
@pytest.mark.parametrize('kind, save_best', [
    (WHOLE, None), (WHOLE, 'auto'), (WHOLE, 'acc'), (WHOLE, ['acc', 'loss']),
    ('CheckpointHook', None)])
def test_a_validation_without_training_saves_nothing(kind, save_best, tmp_path):
    with alone():
        runner = untrained(
            tmp_path, checkpoint=dict(type=kind, save_best=save_best),
            scores=[1., 2., 3., 4., 5.])
        for score in (1., 2.):
            assert runner.val() == dict(acc=score, loss=score)
        assert tree(tmp_path) == []
        runner.train()  # a training afterwards saves
        assert 'last_checkpoint' in tree(tmp_path)


@pytest.mark.parametrize('error', [
    RuntimeError('unable to mmap 8 bytes from file: No such device (19)'),
    OSError(errno.ENODEV, 'No such device')])
def test_a_file_system_without_mmap(error, tmp_path, monkeypatch, recwarn):
    original = torch.load

    def load(*args, mmap=False, **kwargs):
        if mmap:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', load)
    train(tmp_path / 'run', checkpoint=dict(type=WHOLE))
    assert not [w for w in recwarn if 'epoch' in str(w.message)]
    assert newest_checkpoint(tmp_path / 'run') == str(tmp_path / 'run/epoch_3.pth')
    train(tmp_path / 'on', checkpoint=dict(type=WHOLE), resume=True,
          load_from=str(tmp_path / 'run/epoch_1.pth'))


def test_a_failing_check_does_not_stop_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_checkpoint, 'peek', lambda path: 1 / 0)
    with pytest.warns(UserWarning, match='epoch_1.pth could not be opened again'):
        train(tmp_path / 'run', checkpoint=dict(type=WHOLE))
    assert (tmp_path / 'run/epoch_3.pth').exists()
