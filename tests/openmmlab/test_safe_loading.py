"""Numpy's arrays under torch's safe loading, whatever else the user allows."""

import copy
import importlib
import io
import pickle
from itertools import product
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from fpt_plugin.io.checkpoints import loads_safely
from fpt_plugin.openmmlab import safe_loading

serialization = torch.serialization
pytestmark = pytest.mark.skipif(
    not loads_safely(), reason='this torch has no list of safe globals')


@pytest.mark.parametrize('code', ['>f8', '<f8', '>i2', '>c16', '>u4', '|b1'])
def test_either_byte_order(tmp_path, code):
    array = np.arange(6).reshape(2, 3).astype(code)
    path = tmp_path / 'numbers.pth'
    torch.save(dict(array=array, columns=array.T, none=array[:0]), path)
    loaded = torch.load(path, weights_only=True)
    assert np.array_equal(loaded['array'], array)
    assert np.array_equal(loaded['columns'], array.T)
    assert loaded['none'].shape == (0, 3)
    assert loaded['array'].dtype is np.dtype(code[1:])
    assert safe_loading._number(array.dtype, array[1:, 2].tobytes()) == array[1, 2]


def test_loaded_arrays_are_plain_ones_to_others(tmp_path):
    path = tmp_path / 'numbers.pth'
    torch.save(np.arange(3.), path)
    loaded = torch.load(path, weights_only=True)
    for other in (loaded + 1, np.append(loaded, 1), copy.deepcopy(loaded),
                  pickle.loads(pickle.dumps(loaded)), np.array(loaded)):
        assert type(other) is np.ndarray
    assert torch.from_numpy(loaded).tolist() == [0, 1, 2]
    assert loaded.sum() == 3 and isinstance(loaded.sum(), float)
    with pytest.raises(pickle.UnpicklingError, match='call numpy.ndarray'):
        safe_loading.LoadedArray(3)


# ------------------------------------------------ beside the user's own list

REAL = {
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    'numpy._core.multiarray._reconstruct': safe_loading.multiarray._reconstruct,
    'numpy._core.multiarray.scalar': safe_loading.multiarray.scalar,
    'builtins.getattr': getattr,
}


@pytest.fixture
def in_order(monkeypatch):
    """Fix what is chance in torch: of two entries of a name the last one counts."""

    def put(before, after):
        ours = serialization.get_safe_globals()
        monkeypatch.setattr(torch._weights_only_unpickler,
                            '_marked_safe_globals_set', [*before, *ours, *after])

    return put


@pytest.mark.parametrize('named', [True, False])
def test_any_mixture_with_the_users_list_loads(
        tmp_path, in_order, monkeypatch, named):
    """Of each name: ours alone, or both, and either of the two counts."""
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
def test_what_the_user_allowed_is_read(tmp_path, in_order, last):
    """Strings, objects, and classes of arrays that we would not read."""
    given = [*REAL.values(), np.matrix, type(np.dtype('U')), type(np.dtype('O'))]
    in_order([] if last else given, given if last else [])
    path = tmp_path / 'more.pth'
    torch.save(dict(names=np.array(['tree', 'car']), seed=np.str_('a'),
                    objects=np.array([1, None]), matrix=np.matrix([[1.]])), path)
    loaded = torch.load(path, weights_only=True)
    assert loaded['names'].tolist() == ['tree', 'car']
    assert loaded['objects'].tolist() == [1, None]
    assert isinstance(loaded['matrix'], np.matrix) and loaded['seed'] == 'a'


def test_arrays_load_after_a_reload_of_this_module_alone(tmp_path):
    torch.save(np.arange(3), tmp_path / 'array.pth')
    try:
        importlib.reload(safe_loading)
        loaded = torch.load(tmp_path / 'array.pth', weights_only=True)
    finally:
        safe_loading.allow_safe_resume()
    assert loaded.tolist() == [0, 1, 2]


@pytest.mark.parametrize('scheduler', [
    dict(type='OneCycleLR', eta_max=0.1, total_steps=6),
    dict(type='OneCycleLR', eta_max=0.1, total_steps=6,
         anneal_strategy='linear'),
    dict(type='ReduceOnPlateauLR', monitor='loss', by_epoch=True),
    dict(type='CosineRestartLR', periods=[2, 2], restart_weights=[1, 0.5],
         eta_min=0.),
    dict(type='PolyLR', eta_min=0.), dict(type='MultiStepLR', milestones=[2]),
    dict(type='LinearMomentum')], ids=lambda cfg: cfg['type'])
def test_schedulers_of_checkpoints_load(scheduler):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    built = PARAM_SCHEDULERS.build(
        {'by_epoch': False, **scheduler}, default_args=dict(optimizer=optimizer))
    want = built.state_dict()
    file = io.BytesIO()
    torch.save(want, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == want


def test_a_one_cycle_scheduler_cannot_be_called_by_a_file():
    class Call:
        def __reduce__(self):
            return OneCycleParamScheduler, (1, 2)

    file = io.BytesIO()
    torch.save(Call(), file)
    file.seek(0)
    with pytest.raises(UnpicklingError, match='not call it|Weights only'):
        torch.load(file, weights_only=True)
