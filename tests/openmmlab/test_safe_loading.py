"""torch's safe loading reads mmengine's checkpoints, with any list of the user's."""

import copy
import importlib
import pickle
import re
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from helpers.pickles import rewrite
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as runner_checkpoint

from fpt_plugin.io.checkpoints import loads_safely
from fpt_plugin.openmmlab import fixes, safe_loading

serialization = torch.serialization
pytestmark = pytest.mark.skipif(
    not loads_safely(), reason='this torch has no list of safe globals')


@pytest.fixture
def checkpoint(tmp_path):
    """Path of a checkpoint with the content that mmengine's runner saves."""
    hub = MessageHub('compat')
    for step in range(3):
        hub.update_scalar('train/loss', 1 / (step + 1))
        hub.update_scalar('train/lr', np.float32(0.5))
        hub.update_scalar('train/acc', torch.tensor(0.25), count=2)
    hub.update_info('epoch', 3)
    hub.update_info('best_score', np.float64(0.375))
    hub.update_info('counts', np.array([1, 2]))
    path = tmp_path / 'epoch_3.pth'
    torch.save(dict(meta=dict(epoch=3, iter=9, cfg='a = 1', seed=0),
                    state_dict=torch.nn.Linear(2, 3).state_dict(),
                    message_hub=hub.state_dict()), path)
    return path


def reload(content, path):
    torch.save(content, path)
    return torch.load(path, weights_only=True)


# ------------------------------------------------------------------ resuming


def test_checkpoints_of_a_training(checkpoint):
    loaded = torch.load(checkpoint, weights_only=True)
    scalars = loaded['message_hub']['log_scalars']
    assert scalars.keys() == {'train/loss', 'train/lr', 'train/acc'}
    history, counts = scalars['train/loss'].data
    assert history.tolist() == [1, 1 / 2, 1 / 3]
    assert counts.tolist() == [1, 1, 1]
    for name in ('mean', 'min', 'max', 'current'):
        assert getattr(scalars['train/loss'], name)() == \
            scalars['train/loss'].statistics(name)
    assert scalars['train/acc'].statistics('mean') == 0.125
    hub = MessageHub('resumed')
    hub.load_state_dict(loaded['message_hub'])
    hub.update_scalar('train/loss', 4.)
    assert hub.get_scalar('train/loss').data[0].tolist() == [1, 1 / 2, 1 / 3, 4]
    assert (hub.get_info('epoch'), hub.get_info('best_score')) == (3, 0.375)
    assert hub.get_info('counts').tolist() == [1, 2]


def test_the_fix_is_needed(checkpoint):
    """If it fails, mmengine's checkpoints load without the fix."""
    code = ('import sys, torch, mmengine.runner\n'
            'assert "fpt_plugin" not in sys.modules\n'
            'torch.load(sys.argv[1], weights_only=True)')
    result = subprocess.run([sys.executable, '-c', code, str(checkpoint)],
                            capture_output=True, text=True, timeout=120)
    assert result.returncode
    assert 'Weights only load failed' in result.stderr
    assert 'mmengine.logging.history_buffer.HistoryBuffer' in result.stderr


def test_the_fix_keeps_the_users_list(checkpoint):
    kept = serialization.get_safe_globals()
    try:
        serialization.clear_safe_globals()
        with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
            torch.load(checkpoint, weights_only=True)
        serialization.add_safe_globals([slice])
        fixes.apply()
        once = set(serialization.get_safe_globals())
        assert slice in once
        fixes.apply()
        assert set(serialization.get_safe_globals()) == once
        torch.load(checkpoint, weights_only=True)
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(kept)


@pytest.mark.parametrize('module', ['numpy.core', 'numpy._core'])
def test_files_of_numpy_1_and_2(checkpoint, module):

    def change(content):
        new, count = re.subn(rb'cnumpy\._?core\.multiarray\n',
                             f'c{module}.multiarray\n'.encode(), content)
        assert count
        return new

    rewrite(checkpoint, change)
    loaded = torch.load(checkpoint, weights_only=True)
    assert loaded['message_hub']['runtime_info']['best_score'] == 0.375


@pytest.mark.parametrize('scheduler', [
    dict(type='OneCycleLR', eta_max=0.1, total_steps=6),
    dict(type='OneCycleLR', eta_max=0.1, total_steps=6,
         anneal_strategy='linear'),
    dict(type='ReduceOnPlateauLR', monitor='loss', by_epoch=True),
    dict(type='CosineRestartLR', periods=[2, 2], restart_weights=[1, 0.5],
         eta_min=0.),
    dict(type='PolyLR', eta_min=0.), dict(type='MultiStepLR', milestones=[2]),
    dict(type='LinearMomentum')], ids=lambda cfg: cfg['type'])
def test_schedulers(scheduler, tmp_path):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    state = PARAM_SCHEDULERS.build(
        {'by_epoch': False, **scheduler},
        default_args=dict(optimizer=optimizer)).state_dict()
    assert reload(state, tmp_path / 'scheduler.pth') == state


# ------------------------------------------------------------------ arrays


@pytest.mark.parametrize('code', [
    *(f'{kind}{2**i}' for kind, sizes in dict(
        b=[0], i=range(4), u=range(4), f=range(1, 4), c=range(3, 5)).items()
      for i in sizes),
    '>f8', '<f8', '>i2', '>c16', '>u4', '|b1'])
def test_arrays_of_numbers_in_either_byte_order(tmp_path, code):
    array = np.arange(6).reshape(2, 3).astype(code)
    loaded = reload(dict(array=array, columns=array.T, none=array[:0],
                         scalar=array[1, 2]), tmp_path / 'numbers.pth')
    assert np.array_equal(loaded['array'], array)
    assert np.array_equal(loaded['columns'], array.T)
    assert loaded['none'].shape == (0, 3)
    assert loaded['array'].dtype is np.dtype(code.lstrip('<>|'))
    assert loaded['scalar'] == array[1, 2]
    assert safe_loading._number(array.dtype, array[1:, 2].tobytes()) == array[1, 2]


def test_loaded_arrays_behave_as_plain_arrays(tmp_path):
    loaded = reload(np.arange(3.), tmp_path / 'numbers.pth')
    for other in (loaded + 1, np.append(loaded, 1), copy.deepcopy(loaded),
                  pickle.loads(pickle.dumps(loaded)), np.array(loaded)):
        assert type(other) is np.ndarray
    assert torch.from_numpy(loaded).tolist() == [0, 1, 2]
    assert loaded.sum() == 3 and isinstance(loaded.sum(), float)
    with pytest.raises(pickle.UnpicklingError, match='call numpy.ndarray'):
        safe_loading.LoadedArray(3)


def test_arrays_load_after_a_reload_of_the_module(tmp_path):
    try:
        importlib.reload(safe_loading)
        loaded = reload(np.arange(3), tmp_path / 'array.pth')
    finally:
        safe_loading.allow_safe_resume()
    assert loaded.tolist() == [0, 1, 2]


# ------------------------------------------------------- the user's own list

REAL = {
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    'numpy._core.multiarray._reconstruct': safe_loading.multiarray._reconstruct,
    'numpy._core.multiarray.scalar': safe_loading.multiarray.scalar,
    'builtins.getattr': getattr,
}


@pytest.fixture
def in_order(monkeypatch):
    """Fix the order of entries: of two with the same name torch uses the last."""

    def put(before, after):
        ours = serialization.get_safe_globals()
        monkeypatch.setattr(torch._weights_only_unpickler,
                            '_marked_safe_globals_set', [*before, *ours, *after])

    return put


@pytest.mark.parametrize('named', [True, False])
def test_any_mixture_with_the_users_list_loads(
        tmp_path, in_order, monkeypatch, named):
    """For each name: no entry of the user's, or one before or after ours."""
    path = tmp_path / 'epoch_1.pth'
    history = HistoryBuffer()
    history.update(0.5)
    torch.save(dict(history=history, best=np.float64(0.375),
                    swapped=np.arange(3, dtype='>f8')), path)
    for choice in product(['ours', 'before', 'after'], repeat=len(REAL)):
        entries = [((real, name) if named else real, where)
                   for (name, real), where in zip(REAL.items(), choice)]
        with monkeypatch.context():
            in_order([e for e, where in entries if where == 'before'],
                     [e for e, where in entries if where == 'after'])
            loaded = torch.load(path, weights_only=True)
            monkeypatch.undo()
        assert loaded['best'] == 0.375
        assert loaded['swapped'].tolist() == [0, 1, 2]
        assert loaded['history'].mean() == 0.5
        assert loaded['history'].statistics('mean') == 0.5


@pytest.mark.parametrize('last', [True, False])
def test_types_that_only_the_user_allowed(tmp_path, in_order, last):
    given = [*REAL.values(), np.matrix, type(np.dtype('U')), type(np.dtype('O'))]
    in_order([] if last else given, given if last else [])
    loaded = reload(
        dict(names=np.array(['tree', 'car']), seed=np.str_('a'),
             objects=np.array([1, None]), matrix=np.matrix([[1.]])),
        tmp_path / 'more.pth')
    assert loaded['names'].tolist() == ['tree', 'car']
    assert loaded['objects'].tolist() == [1, None]
    assert isinstance(loaded['matrix'], np.matrix) and loaded['seed'] == 'a'


# ---------------------------------------------------- loaders of the fork


def list_of_the_fork():
    """Return the types that the fork's loader allows while it reads a file."""
    return [
        slice, getattr, safe_loading.multiarray._reconstruct, np.ndarray, np.dtype,
        safe_loading.multiarray.scalar,
        *(type(np.dtype(code)) for code in ('uint32', 'float64', 'int64')),
        HistoryBuffer
    ]


def test_files_load_after_another_list_was_removed(checkpoint, tmp_path):
    """torch removes all entries of the block, also those that were there before."""
    with serialization.safe_globals(list_of_the_fork()):
        pass
    assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 3
    content = dict(part=slice(1, 2), seed=np.uint32(7))
    assert reload(content, tmp_path / 'more.pth') == dict(part=slice(1, 2), seed=7)


def test_the_restricted_getattr_is_kept_under_the_forks_loader(
        checkpoint, monkeypatch):
    monkeypatch.setattr(runner_checkpoint, 'get_torch_safe_globals',
                        list_of_the_fork, raising=False)
    fixes.apply()
    assert getattr not in serialization.get_safe_globals()
    with serialization.safe_globals(runner_checkpoint.get_torch_safe_globals()):
        named = torch._weights_only_unpickler._get_user_allowed_globals()
        assert named['builtins.getattr'] is safe_loading._method
        assert named['numpy.ndarray'] is safe_loading.LoadedArray
        assert getattr not in named.values()
        assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 3


def test_loaders_of_mmengine_and_of_the_commands(checkpoint):
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')
        assert loaded['meta']['epoch'] == 3
    safe_loading.refuse_pickles()
    assert torch.load(checkpoint, weights_only=False)['meta']['epoch'] == 3
