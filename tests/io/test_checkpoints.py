"""Checkpoints are read safely and written atomically."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers.folders import names
from mmengine.logging.history_buffer import HistoryBuffer
from torch import nn

from fpt_plugin.io import checkpoints as module
from fpt_plugin.io.checkpoints import (
    fetch_state_dict,
    find_state_dict,
    peek,
    read_state_dict,
    read_weights,
    some,
    summarised,
    write_weights,
)
from fpt_plugin.io.files import sha256_of

STATE = {'a.weight': torch.arange(3.), 'a.bias': torch.tensor(2)}


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a checkpoint and returns its path."""

    def save(content, name='in.pth', **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def assert_is(weights, state=STATE):
    assert weights.state_dict.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(weights.state_dict[key], value)


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize('content, container_key, unread', [
    (STATE, '', []),
    (OrderedDict(STATE), '', []),
    (dict(state_dict=STATE, epoch=3, arch='resnet50', optimizer=None),
     'state_dict', []),
    (dict(model=STATE), 'model', []),
    (dict(state_dict_ema=OrderedDict(STATE)), 'state_dict_ema', []),
    (dict(state_dict_ema={key: value + 1 for key, value in STATE.items()},
          state_dict=STATE), 'state_dict', ['state_dict_ema']),
    (dict(state_dict=STATE, message_hub=HistoryBuffer([1., 2.], [1, 1])),
     'state_dict', []),  # the log of mmengine's training
    *(({prefix + key: value for key, value in STATE.items()}, '', []) for prefix in (
        'module.', 'backbone.', 'module.backbone.', 'backbone.module.')),
])
@pytest.mark.parametrize('zipped', [True, False])
def test_weights_are_found(save, content, container_key, unread, zipped):
    weights = read_weights(save(content, _use_new_zipfile_serialization=zipped))
    assert_is(weights)
    assert weights.container_key == container_key
    assert (weights.unread, weights.outside) == (unread, [])


@pytest.mark.parametrize('zipped', [True, False])
def test_peek(save, zipped):
    """Old files, which cannot be mapped into memory, are read at once."""
    content = peek(save(dict(state_dict=STATE), _use_new_zipfile_serialization=zipped))
    assert_is(find_state_dict(content, 'in.pth'))


@pytest.mark.parametrize('state', [
    {'a.weight': torch.ones(2), 'a._extra_state': None},
    {'a.weight': torch.ones(2), 'b.weight': nn.Parameter(torch.ones(2)), 'step': 3}])
def test_tensors_among_other_values(save, state):
    wanted = {key for key in state if key.endswith('weight')}
    for content in (state, dict(state_dict=state, ema=torch.rand(1))):
        assert set(read_state_dict(save(content)).state_dict) == wanted


def test_only_the_backbone_of_a_detector_is_read(save):
    state = {f'module.backbone.{key}': value for key, value in STATE.items()}
    state['module.neck.lateral_convs.0.conv.weight'] = torch.rand(1)
    weights = read_weights(save(state))
    assert_is(weights)
    assert weights.outside == ['neck.lateral_convs.0.conv.weight']


def test_keys_with_and_without_a_prefix(save):
    with pytest.raises(ValueError, match='a.weight with and without module.'):
        read_weights(save({**STATE, 'module.a.weight': torch.rand(1)}))


def test_a_whole_detector_with_versions_of_modules(save):
    """torch needs the versions to convert old keys."""
    net = nn.Sequential(OrderedDict(backbone=nn.Linear(1, 1),
                                    head=nn.BatchNorm1d(1)))
    weights = read_state_dict(save(dict(state_dict=net.state_dict())))
    assert_is(weights, net.state_dict())
    assert weights.state_dict._metadata['head']['version'] == 2
    assert_is(
        read_state_dict(save({f'module.{k}': v for k, v in STATE.items()})))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the folder of the download cache."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


def test_a_url_is_downloaded_once(save, hub, monkeypatch):
    source, fetched = save(STATE), []

    def download(url, path, digest):
        fetched.append((url, digest))
        Path(path).write_bytes(source.read_bytes())

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    for _ in range(2):
        assert_is(fetch_state_dict('https://a.example/b/c.pth?x=1'))
    fetch_state_dict('https://a.example/b/fpn_1x_2020-c0ffee12.pth')
    assert fetched == [
        ('https://a.example/b/c.pth?x=1', None),
        ('https://a.example/b/fpn_1x_2020-c0ffee12.pth', 'c0ffee12')]
    assert names(hub) == ['c.pth', 'fpn_1x_2020-c0ffee12.pth']


def published(save, tmp_path, digest=None):
    """Write a checkpoint with digits of its SHA-256 in its name; return its URL."""
    source = save(STATE)
    digest = digest or sha256_of(source)[:8]
    path = tmp_path / f'fpn_1x_2020-{digest}.pth'
    source.rename(path)
    return path.as_uri()


def test_downloads_with_another_digest_are_refused(save, hub, tmp_path):
    with pytest.raises(RuntimeError, match='hash.*c0ffee12'):
        fetch_state_dict(published(save, tmp_path, 'c0ffee12'))
    assert names(hub) == []


def test_cached_files_are_checked(save, hub, tmp_path):
    url = published(save, tmp_path)
    hub.mkdir(parents=True)
    left = hub / url.rpartition('/')[2]
    left.write_bytes(b'half of a file')
    with pytest.raises(RuntimeError, match='is not the file of its name'):
        fetch_state_dict(url)
    assert left.read_bytes() == b'half of a file'
    left.unlink()
    for _ in range(2):
        assert_is(fetch_state_dict(url))


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


@pytest.mark.parametrize('legacy', [False, True])
def test_no_code_in_a_checkpoint_is_run(save, tmp_path, legacy):
    path = save(
        dict(state_dict=STATE, extra=Trap(tmp_path / 'sprung')),
        _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError) as caught:
        read_weights(path)
    assert not (tmp_path / 'sprung').exists()
    message = str(caught.value)
    assert 'mkdir' in message and 'not safe' in message and '\n' not in message


def test_whole_models_are_refused(save):
    with pytest.raises(ValueError, match='holds torch.nn.modules.linear.Linear'):
        read_weights(save(nn.Linear(1, 1)))
    with pytest.raises(ValueError, match='not safe'):
        read_weights(save(dict(model=nn.Linear(1, 1))))


def broken(path, kind):
    """Write a file that is no checkpoint."""
    if kind == 'half':
        torch.save(STATE, path)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == 'zip':
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('a.txt', 'text')
    else:
        path.write_bytes(BROKEN[kind])


BROKEN = {
    'empty': b'',
    'text': b'Not Found\n',
    'html': b'<!DOCTYPE html>\n<html>\n',
    'pickled text': pickle.dumps('text'),
    'pickled path': pickle.dumps(Path('.')),
    'noise': bytes(range(256)) * 40,
}


@pytest.mark.parametrize('kind', [*BROKEN, 'half', 'zip'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_files_that_are_no_checkpoints(tmp_path, kind, suffix):
    path = tmp_path / f'in{suffix}'
    broken(path, kind)
    with pytest.raises(ValueError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('content, words', [
    ([1, 2], 'one list and no state dict'),
    (torch.rand(1), 'one Tensor and no state dict'),
    ({}, 'it has nothing'),
    (dict(epoch=1, lr=.1), 'it has epoch, lr'),
    (dict(state_dict={}), 'it has state_dict'),
    (dict(a=torch.rand(1), b=1), 'it has a, b'),
    ({1: torch.rand(1)}, 'it has 1'),
])
def test_checkpoints_without_a_state_dict(save, content, words):
    with pytest.raises(ValueError, match=words):
        read_weights(save(content))


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / 'none.pth')
    with pytest.raises(IsADirectoryError, match='is a folder'):
        read_weights(tmp_path)
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError):
        read_weights(tmp_path / 'file' / 'in.pth')


# ------------------------------------------------------------------ safetensors


def test_safetensors(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file(STATE, tmp_path / 'in.safetensors')
    assert_is(read_weights(tmp_path / 'in.safetensors'))


def test_a_replaced_and_a_missing_safetensors(tmp_path, monkeypatch):
    path = tmp_path / 'in.safetensors'
    path.write_bytes(b'tensors')
    package, torch_part = (types.ModuleType('safetensors'),
                           types.ModuleType('safetensors.torch'))

    def load_file(name, device):
        assert (name, device) == (str(path), 'cpu')
        return {f'module.{key}': value for key, value in STATE.items()}

    torch_part.load_file = load_file
    monkeypatch.setitem(sys.modules, 'safetensors', package)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', torch_part)
    monkeypatch.setattr(module, 'find_spec', lambda name: name)
    assert_is(read_weights(path))
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install safetensors'):
        read_weights(path)


# ---------------------------------------------------------------------- writing


def test_missing_folders_are_created(tmp_path):
    write_weights(STATE, tmp_path / 'a' / 'b' / 'out.pth')
    assert_is(read_weights(tmp_path / 'a' / 'b' / 'out.pth'))


@pytest.mark.parametrize('error, raised', [
    (OSError('disk full'), OSError),
    (RuntimeError('[enforce fail at x.cc:1] no space\nat y'), OSError),
    (KeyboardInterrupt(), KeyboardInterrupt),
])
@pytest.mark.parametrize('old', [False, True])
def test_a_failed_write_keeps_the_old(tmp_path, monkeypatch, error, raised, old):

    def half(content, path):
        Path(path).write_bytes(b'half')
        raise error

    out = tmp_path / 'out.pth'
    if old:
        out.write_text('old')
    monkeypatch.setattr(module.torch, 'save', half)
    with pytest.raises(raised) as caught:
        write_weights(STATE, out)
    assert names(tmp_path) == (['out.pth'] if old else [])
    assert not old or out.read_text() == 'old'
    assert '\n' not in str(caught.value)


def test_keys_in_messages():
    among = ['a.b.x', 'a.b.y', 'a.c.x', 'd.x', 'e']
    assert summarised(['a.b.x', 'a.b.y', 'd.x'], among) == ['a.b.*', 'd.*']
    assert summarised(['a.b.x', 'e'], among) == ['a.b.x', 'e']
    assert summarised(among, among) == ['a.*', 'd.*', 'e']
    assert summarised([], among) == []
    assert some(among, 2) == 'a.b.x, a.b.y, ...'
    assert some(among[1:]) == 'a.b.y, a.c.x, d.x, e'
    assert some([]) == ''
