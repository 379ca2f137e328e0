"""Checkpoints of mmengine under torch's safe loading, and nothing more."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import Sequential
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as runner_checkpoint

from fpt_plugin import FPT
from fpt_plugin.openmmlab import mends, safe_loading

serialization = torch.serialization
pytestmark = pytest.mark.skipif(
    not hasattr(serialization, 'add_safe_globals'),
    reason='this torch has no list of safe globals')


@pytest.fixture
def checkpoint(tmp_path):
    """Path of a training checkpoint with what mmengine's runner saves."""
    hub = MessageHub('compat')
    for step in range(3):
        hub.update_scalar('train/loss', 1 / (step + 1))
        hub.update_scalar('train/lr', np.float32(0.5))
        hub.update_scalar('train/acc', torch.tensor(0.25), count=2)
    hub.update_info('epoch', 3)
    hub.update_info('best_score', np.float64(0.375))
    hub.update_info('counts', np.array([1, 2]))
    weight = torch.nn.Parameter(torch.arange(6.).reshape(2, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    path = tmp_path / 'epoch_3.pth'
    torch.save(
        dict(
            meta=dict(epoch=3, iter=9, cfg='a = 1', seed=0),
            state_dict={'weight': weight.detach()},
            optimizer=optimizer.state_dict(),
            message_hub=hub.state_dict()), path)
    return path


@pytest.fixture
def bare():
    """torch as it is without the mends; put back afterwards."""
    kept = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    yield
    serialization.clear_safe_globals()
    serialization.add_safe_globals(kept)


def run(code, *args):
    return subprocess.run(
        [sys.executable, '-c', code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120)


def rewrite(path, change):
    """Replace the pickle inside a checkpoint by ``change(pickle)``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            if name.endswith('/data.pkl'):
                content = change(content)
            archive.writestr(name, content)


# ------------------------------------------------------------------ resume


def test_resuming_works_on_import_alone(checkpoint):
    loaded = torch.load(checkpoint, weights_only=True)
    scalars = loaded['message_hub']['log_scalars']
    assert scalars.keys() == {'train/loss', 'train/lr', 'train/acc'}
    history, counts = scalars['train/loss'].data
    assert history.tolist() == [1, 1 / 2, 1 / 3]
    assert counts.tolist() == [1, 1, 1]
    # The statistics refer to HistoryBuffer's methods: they must work, too.
    for name in ('mean', 'min', 'max', 'current'):
        assert getattr(scalars['train/loss'], name)() == \
            scalars['train/loss'].statistics(name)
    assert scalars['train/acc'].statistics('mean') == 0.125
    info = loaded['message_hub']['runtime_info']
    assert info['best_score'] == 0.375
    assert info['counts'].tolist() == [1, 2]
    assert loaded['meta']['epoch'] == 3


def test_a_message_hub_resumes_from_it(checkpoint):
    hub = MessageHub('resumed')
    hub.load_state_dict(
        torch.load(checkpoint, weights_only=True)['message_hub'])
    hub.update_scalar('train/loss', 4.)
    assert hub.get_scalar('train/loss').data[0].tolist() == [
        1, 1 / 2, 1 / 3, 4
    ]
    assert hub.get_info('epoch') == 3


def test_the_mend_is_needed(checkpoint):
    """Without the package torch refuses the file, and the mend can go."""
    result = run(
        'import sys, torch, mmengine.runner\n'
        'assert "fpt_plugin" not in sys.modules\n'
        'torch.load(sys.argv[1], weights_only=True)', checkpoint)
    assert result.returncode
    assert 'Weights only load failed' in result.stderr
    assert 'mmengine.logging.history_buffer.HistoryBuffer' in result.stderr


def test_apply_is_what_mends(checkpoint, bare):
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(checkpoint, weights_only=True)
    mends.apply()
    assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 3


def test_applying_twice_is_harmless(checkpoint, bare):
    mends.apply()
    once = set(serialization.get_safe_globals())
    mends.apply()
    assert set(serialization.get_safe_globals()) == once
    torch.load(checkpoint, weights_only=True)


def test_the_users_own_list_is_kept(bare):
    serialization.add_safe_globals([slice])
    mends.apply()
    assert slice in serialization.get_safe_globals()


@pytest.mark.parametrize('module', ['numpy.core', 'numpy._core'])
def test_files_from_both_sides_of_numpy_2(checkpoint, module):

    def change(content):
        for old in (b'numpy.core', b'numpy._core'):
            content = content.replace(b'c' + old + b'.multiarray\n',
                                      b'c' + module.encode() + b'.multiarray\n')
        return content

    rewrite(checkpoint, change)
    with zipfile.ZipFile(checkpoint) as archive:
        name, = (n for n in archive.namelist() if n.endswith('data.pkl'))
        assert f'{module}.multiarray\n_recon'.encode() in archive.read(name)
    loaded = torch.load(checkpoint, weights_only=True)
    assert loaded['message_hub']['runtime_info']['best_score'] == 0.375


@pytest.mark.parametrize('code', [
    f'{kind}{2**i}' for kind, sizes in dict(
        b=[0], i=range(4), u=range(4), f=range(1, 4), c=range(3, 5)).items()
    for i in sizes
])
def test_numbers_that_a_log_holds(tmp_path, code):
    array = np.ones((2, 3), dtype=code)
    path = tmp_path / 'numbers.pth'
    torch.save(dict(array=array, scalar=array[0, 0]), path)
    loaded = torch.load(path, weights_only=True)
    assert np.array_equal(loaded['array'], array)
    assert loaded['array'].dtype == array.dtype
    assert loaded['scalar'] == array[0, 0]


# ---------------------------------------------------- loaders of the fork


def the_forks_list():
    """What the fork's loader allows for as long as it reads a file."""
    return [
        slice, getattr, safe_loading.multiarray._reconstruct, np.ndarray, np.dtype,
        safe_loading.multiarray.scalar,
        *(type(np.dtype(code)) for code in ('uint32', 'float64', 'int64')),
        HistoryBuffer
    ]


def test_files_load_after_someone_took_his_own_list_back(checkpoint):
    """torch takes off what leaves the block, whoever put it there."""
    with serialization.safe_globals(the_forks_list()):
        pass
    assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 3


def test_what_the_forks_list_holds_is_read(tmp_path):
    path = tmp_path / 'more.pth'
    torch.save(dict(part=slice(1, 2), seed=np.uint32(7)), path)
    loaded = torch.load(path, weights_only=True)
    assert loaded == dict(part=slice(1, 2), seed=7)


def test_the_stand_ins_are_kept_under_the_forks_loader(checkpoint, monkeypatch):
    """Its real getattr would read anything of anything."""
    monkeypatch.setattr(runner_checkpoint, 'get_torch_safe_globals',
                        the_forks_list, raising=False)
    mends.apply()
    with serialization.safe_globals(runner_checkpoint.get_torch_safe_globals()):
        named = torch._weights_only_unpickler._get_user_allowed_globals()
        assert named['builtins.getattr'] is safe_loading._method
        assert named['numpy.ndarray'] is safe_loading.LoadedArray
        assert getattr not in named.values()
        assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 3


def test_mmengine_reads_what_it_wrote(checkpoint):
    """By its own loader, whichever distribution it is of."""
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')
        assert loaded['meta']['epoch'] == 3


# ------------------------------------------------------------------ safety


@pytest.mark.parametrize(
    'name', ['mean', 'min', 'max', 'current', 'update', 'statistics'])
def test_public_methods_are_answered(name):
    assert safe_loading._method(HistoryBuffer, name) is getattr(
        HistoryBuffer, name)


class Derived(HistoryBuffer):
    """Not the class whose methods are known."""


@pytest.mark.parametrize(('owner', 'name'), [
    (os, 'system'),
    (HistoryBuffer.mean, '__globals__'),
    (Derived, 'mean'),
    (HistoryBuffer(), 'mean'),
    ('HistoryBuffer', 'mean'),
    (dict, 'update'),
    (HistoryBuffer, '__init__'),
    (HistoryBuffer, '__setstate__'),
    (HistoryBuffer, '__class__'),
    (HistoryBuffer, '__dict__'),
    (HistoryBuffer, '__subclasses__'),
    (HistoryBuffer, 'mro'),
    (HistoryBuffer, '_set_default_statistics'),
    (HistoryBuffer, '_statistics_methods'),
    (HistoryBuffer, 'register_statistics'),
    (HistoryBuffer, 'data'),
    (HistoryBuffer, 'nothing'),
    (HistoryBuffer, ''),
])
def test_everything_else_is_refused(owner, name):
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer') as caught:
        safe_loading._method(owner, name)
    assert repr(name) in str(caught.value)


def test_the_real_getattr_is_not_on_the_list():
    allowed = serialization.get_safe_globals()
    assert getattr not in allowed
    named = {a[1]: a[0] for a in allowed if isinstance(a, tuple)}
    assert named['builtins.getattr'] is safe_loading._method
    assert getattr not in named.values()


# Pickles by hand, in the protocol of torch.save: what an attacker may write.


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def call(function, *args):
    return function + b'(' + b''.join(args) + b'tR'


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
    # An array of object pointers over bytes that the file chooses; here they
    # are null pointers, which are read as None.
    'raw pointers': call(
        name('numpy', 'ndarray'), b'K\x01\x85',
        call(name('numpy', 'dtype'), text('O')),
        call(name('__builtin__', 'bytearray'), b'K\x08')),
    'attrgetter': name('operator', 'attrgetter'),
    'getattr by our name': name(
        'fpt_plugin.openmmlab.safe_loading', '_method'),
}


@pytest.mark.parametrize('attack', ATTACKS)
def test_malicious_checkpoints_are_still_refused(tmp_path, attack):
    content = b'\x80\x02' + ATTACKS[attack] + b'.'
    pickle.loads(content)  # well-formed: it is refused for what it asks
    path = tmp_path / 'model.pth'
    torch.save({}, path)
    rewrite(path, lambda _: content)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_file_cannot_change_what_numbers_are(tmp_path):
    """Into pointers: a dtype with a field of objects, over bytes of the file."""
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
    path = tmp_path / 'model.pth'
    torch.save({}, path)
    rewrite(path, lambda _: b'\x80\x02' + array + b'.')
    assert pickle.loads(b'\x80\x02' + changed + b'.').names == ('f0', )
    loaded = torch.load(path, weights_only=True)
    assert loaded.dtype is np.dtype('f8') and loaded.dtype.names is None
    assert loaded.tobytes() == b'A' * 8


@pytest.mark.parametrize('code', ['O', 'O8', 'V8', 'f8,O', 'U3', '>f8', '', 8, 'M8'])
def test_other_dtypes_are_refused(code):
    with pytest.raises(pickle.UnpicklingError, match='of numbers'):
        safe_loading._number_dtype(code, False, True)


def test_arrays_of_strings_are_refused_by_name(tmp_path):
    path = tmp_path / 'strings.pth'
    torch.save(np.array(['tree', 'car']), path)
    with pytest.raises(pickle.UnpicklingError, match="of numbers, .*'U4'"):
        torch.load(path, weights_only=True)


def test_methods_are_read_through_the_stand_in(tmp_path):
    """The pickles above are refused for their names, not for their form."""
    path = tmp_path / 'model.pth'
    torch.save({}, path)
    rewrite(path, lambda _: b'\x80\x02' + MEAN + b'.')
    assert torch.load(path, weights_only=True) is HistoryBuffer.mean


class Unknown:
    """A class that nobody allowed."""


def test_safe_loading_is_not_turned_off(tmp_path):
    path = tmp_path / 'unknown.pth'
    torch.save(Unknown(), path)
    with pytest.raises(pickle.UnpicklingError, match='Unknown'):
        torch.load(path, weights_only=True)


def test_tools_refuse_pickles_whatever_the_loader_asks(tmp_path, monkeypatch):
    """mmengine reads URLs unsafely, the fork what the safe way refuses."""
    path = tmp_path / 'unknown.pth'
    torch.save(slice(3), path)
    rewrite(path, lambda _: b'\x80\x02' + ATTACKS['eval'] + b'.')
    assert torch.load(path, weights_only=False) is eval
    safe_loading.refuse_pickles()
    with pytest.raises(pickle.UnpicklingError, match='eval'):
        torch.load(path, weights_only=False)


def test_tools_still_resume(checkpoint):
    safe_loading.refuse_pickles()
    assert torch.load(checkpoint, weights_only=False)['meta']['epoch'] == 3


@pytest.mark.parametrize('name', [
    'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
def test_what_the_user_set_counts(checkpoint, monkeypatch, name):
    monkeypatch.setenv(name, '1')
    before = dict(os.environ)
    safe_loading.refuse_pickles()
    assert dict(os.environ) == before
    torch.load(checkpoint)


# ----------------------------------------------------------------- Cityscapes


def test_cityscapes_scripts_find_what_numpy_took_away():
    scripts = pytest.importorskip(
        'cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling')
    labels = np.array([[0, 7], [26, 255]])
    mends.let_cityscapes_evaluate()
    found = scripts.np.in1d(labels, [0, 26])
    assert found.tolist() == [True, False, True, False]
    assert scripts.np.in1d(labels, [0], invert=True).tolist() == [
        False, True, True, True]
    assert scripts.np.float64 is np.float64
    if not hasattr(np, 'in1d'):  # since numpy 2.4
        assert scripts.np is not np
    given = scripts.np
    mends.apply()
    assert scripts.np is given
    # Without the mend the metric dies when a whole validation is over.
    scripts.np = np
    if not hasattr(np, 'in1d'):
        with pytest.raises(AttributeError, match='in1d'):
            scripts.np.in1d(labels, [0])
    mends.let_cityscapes_evaluate()
    assert scripts.np.in1d(labels, [0]).tolist() == [True, False, False, False]


# -------------------------------------------------------------------- configs

CONFIG = 'fpt/faster-rcnn_r50_fpt_1x_coco.py'


def read(base):
    return Config.fromstring(f'_base_ = {base!r}', '.py')


def test_bases_of_ours_are_found_by_the_mend(monkeypatch):
    monkeypatch.delitem(MODULE2PACKAGE, 'fpt_plugin')
    with pytest.raises(Exception, match='load fpt_plugin config'):
        read(f'fpt_plugin::{CONFIG}')
    mends.find_config_packages()
    assert read(f'fpt_plugin::{CONFIG}').model.neck.type == 'FPT'


def test_bases_of_mmseg_are_found_by_the_mend(monkeypatch):
    """mmengine's table names the stock distribution, on the fork as well."""
    base = 'mmseg::_base_/models/fpn_r50.py'
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    if mends.version_of('mmsegmentation') is None:
        with pytest.raises(Exception, match='mmsegmentation'):
            read(base)
    mends.find_config_packages()
    assert read(base).model.type == 'EncoderDecoder'


def test_the_scope_is_kept_by_the_mend(monkeypatch, tmp_path):
    """Of what a config of ours defines itself, as the quickstart's does."""
    own = tmp_path / 'mine.py'
    own.write_text("_base_ = 'fpt_plugin::quickstart/"
                   "faster-rcnn_mobilenet-v2_fpt_trees.py'\n"
                   'pipeline = _base_.train_pipeline')

    def scopes():
        return {step.get('_scope_') for step in Config.fromfile(own).pipeline}

    monkeypatch.setattr(Config, '_get_cfg_path',
                        staticmethod(Config._get_cfg_path.__wrapped__))
    assert scopes() == {'fpt_plugin'}
    mends.keep_host_scope()
    once = Config._get_cfg_path
    assert scopes() == {None}
    mends.keep_host_scope()
    assert Config._get_cfg_path is once


def test_lists_of_necks_take_plain_checkpoints_by_the_mend(monkeypatch):
    """FPT that continues a list sees no keys but its own."""

    def load():
        necks = Sequential(
            torch.nn.Conv2d(8, 8, 1), FPT(8, 8, pyramid=None, num_levels=2))
        return necks.load_state_dict(
            torch.nn.Conv2d(8, 8, 1).state_dict(), strict=False)

    assert not load().unexpected_keys
    mended = Sequential._load_from_state_dict
    monkeypatch.setattr(Sequential, '_load_from_state_dict', mended.__wrapped__)
    assert load().unexpected_keys == ['weight', 'bias']
    mends.load_plain_necks_into_lists()
    assert not load().unexpected_keys
    once = Sequential._load_from_state_dict
    mends.load_plain_necks_into_lists()
    assert Sequential._load_from_state_dict is once
