"""Checkpoints that try more than to hold numbers are refused."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from helpers.pickles import call, name, pickled, text, write
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from fpt_plugin.io.checkpoints import loads_safely
from fpt_plugin.openmmlab import safe_loading

pytestmark = pytest.mark.skipif(
    not loads_safely(), reason='this torch has no list of safe globals')


class Derived(HistoryBuffer):
    """Not the class whose methods are allowed."""


@pytest.mark.parametrize(('owner', 'name'), [
    (os, 'system'),
    (HistoryBuffer.mean, '__globals__'),
    (Derived, 'mean'),
    (HistoryBuffer(), 'mean'),
    ('HistoryBuffer', 'mean'),
    (dict, 'update'),
    *((HistoryBuffer, name) for name in (
        '__init__', '__setstate__', '__class__', '__dict__', '__subclasses__',
        'mro', '_set_default_statistics', '_statistics_methods',
        'register_statistics', 'data', 'nothing', '')),
])
def test_getattr_is_restricted(owner, name):
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer') as caught:
        safe_loading._method(owner, name)
    assert repr(name) in str(caught.value)


GETATTR = name('__builtin__', 'getattr')
BUFFER = name('mmengine.logging.history_buffer', 'HistoryBuffer')
MEAN = call(GETATTR, BUFFER, text('mean'))
SYSTEM = call(GETATTR, name('shutil', 'os'), text('system'))
ATTACKS = {
    'os.system': SYSTEM,
    'os.system called': call(SYSTEM, text('exit 3')),
    'posix.system': name('posix', 'system'),
    'eval': name('__builtin__', 'eval'),
    'globals of a method': call(GETATTR, MEAN, text('__globals__')),
    'a private method': call(GETATTR, BUFFER, text('__init__')),
    'subclasses': call(GETATTR, BUFFER, text('__subclasses__')),
    'another class': call(GETATTR, name('collections', 'OrderedDict'),
                          text('fromkeys')),
    'an instance': call(GETATTR, call(BUFFER), text('update')),
    'a method called': call(
        call(GETATTR, BUFFER, text('update')), call(BUFFER), b'K\x01'),
    # An array of object pointers over bytes from the file. Here they are null
    # pointers, which are read as None.
    'raw pointers': call(
        name('numpy', 'ndarray'), b'K\x01\x85',
        call(name('numpy', 'dtype'), text('O')),
        call(name('__builtin__', 'bytearray'), b'K\x08')),
    'attrgetter': name('operator', 'attrgetter'),
    'the replacement of getattr': name(
        'fpt_plugin.openmmlab.safe_loading', '_method'),
}


@pytest.mark.parametrize('attack', ATTACKS)
def test_attacks_are_refused(tmp_path, attack):
    pickle.loads(pickled(ATTACKS[attack]))  # the pickle itself is valid
    with pytest.raises(pickle.UnpicklingError):
        torch.load(write(tmp_path / 'model.pth', ATTACKS[attack]), weights_only=True)
    # A pickle of the same form with an allowed method loads.
    path = write(tmp_path / 'model.pth', MEAN)
    assert torch.load(path, weights_only=True) is HistoryBuffer.mean


def test_commands_refuse_pickles_with_any_loader(tmp_path):
    """mmengine reads URLs unsafely, and the fork retries unsafely."""
    path = write(tmp_path / 'unknown.pth', ATTACKS['eval'])
    assert torch.load(path, weights_only=False) is eval
    safe_loading.refuse_pickles()
    with pytest.raises(pickle.UnpicklingError, match='eval'):
        torch.load(path, weights_only=False)


@pytest.mark.parametrize('variable', [
    'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
def test_the_users_choice_of_loading_is_kept(monkeypatch, variable):
    monkeypatch.setenv(variable, '1')
    before = dict(os.environ)
    safe_loading.refuse_pickles()
    assert dict(os.environ) == before


def test_a_file_cannot_add_pointers_to_a_dtype(tmp_path):
    """Set a dtype's state to one with a field of objects, over bytes of the file."""
    dtype = name('numpy', 'dtype')
    numbers = call(dtype, text('f8'), b'\x89', b'\x88')  # a copy
    objects = call(dtype, text('f4'), b'\x89', b'\x88')
    fields = b'}' + text('f0') + b'(' + objects + b'K\x00ts'
    changed = numbers + (b'(K\x03' + text('<') + b'N(' + text('f0') + b't' +
                         fields + b'K\x08K\x08K\x01tb')
    array = call(name('numpy.core.multiarray', '_reconstruct'),
                 name('numpy', 'ndarray'), b'(K\x00t', text('b'))
    content = call(name('_codecs', 'encode'), text('A' * 8), text('latin1'))
    array += b'(K\x01(K\x01t' + changed + b'\x89' + content + b'tb'
    assert pickle.loads(pickled(changed)).names == ('f0', )
    loaded = torch.load(write(tmp_path / 'model.pth', array), weights_only=True)
    assert loaded.dtype is np.dtype('f8') and loaded.dtype.names is None
    assert loaded.tobytes() == b'A' * 8


@pytest.mark.parametrize('code', ['O', 'O8', 'V8', 'f8,O', 'U3', '>f8', '', 8, 'M8'])
def test_other_dtypes_are_refused(code):
    with pytest.raises(pickle.UnpicklingError, match='of numbers'):
        safe_loading._number_dtype(code, False, True)


class OneCycleCall:
    """Calls the scheduler when it is unpickled."""

    def __reduce__(self):
        return OneCycleParamScheduler, (1, 2)


@pytest.mark.parametrize('content, words', [
    (np.array(['tree', 'car']), "of numbers, .*'U4'"),
    (OneCycleCall(), re.escape('not call it') + '|Weights only')])
def test_other_objects_are_refused(tmp_path, content, words):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(pickle.UnpicklingError, match=words):
        torch.load(tmp_path / 'other.pth', weights_only=True)
