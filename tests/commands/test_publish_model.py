"""Published checkpoints: kept and removed content, and loading without trust."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import names
from helpers.runs import alone
from helpers.small_models import DETECTORS, SEGMENTORS, train
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn

from fpt_plugin.commands import publish_model as module
from fpt_plugin.commands.publish_model import clean_meta, main, parser, plain, publish

STATE = OrderedDict(weight=torch.arange(6.).reshape(2, 3), bias=torch.tensor(2))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return a function that trains a shipped config and returns the run."""
    return cache(lambda name: train(name, tmp_path_factory.mktemp('run')))


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a checkpoint and returns its path."""

    def save(content, name='in.pth'):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def load(path):
    """Read a file as if only torch were installed."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        return torch.load(path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)


def assert_same(state, other):
    assert list(state) == list(other)
    for key, value in other.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value)


# ------------------------------------------------------------- real trainings

DETECTOR, SEGMENTOR = list(DETECTORS)[1], list(SEGMENTORS)[0]
INFERENCE = {
    DETECTOR:
    """
from mmdet.apis import DetInferencer
boxes = DetInferencer(weights=weights, device='cpu')(image)['predictions'][0]
print(repr(sum(map(sum, boxes['bboxes']))), len(boxes['bboxes']))
""",
    SEGMENTOR:
    """
from mmseg.apis import MMSegInferencer
labels = MMSegInferencer(None, weights, device='cpu')(image)['predictions']
print(labels.sum(), labels.shape)
"""
}


@pytest.mark.parametrize('name', INFERENCE)
def test_inference_in_a_new_process(trained, tmp_path, capsys, name):
    """The inferencers need only the published file, and predict the same."""
    run = trained(name)
    report = publish(run.checkpoint, tmp_path / 'out.pth')
    before = torch.load(run.checkpoint, weights_only=True)
    after = load(report.out)
    assert after.keys() == {'meta', 'state_dict'}
    assert_same(after['state_dict'], before['state_dict'])
    assert after['state_dict']._metadata == before['state_dict']._metadata
    for key in ('cfg', 'epoch', 'iter', 'mmengine_version'):
        assert after['meta'][key] == before['meta'][key]
    assert after['meta']['dataset_meta']['classes'] == \
        before['meta']['dataset_meta']['classes']
    assert {'optimizer', 'param_schedulers', 'message_hub',
            'meta.time'} <= set(report.dropped)
    assert report.sizes[1] < report.sizes[0]

    def code(weights):
        return (f'weights, image = {str(weights)!r}, {run.images[0]!r}\n'
                + INFERENCE[name])

    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code(report.out)],
        capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    capsys.readouterr()
    with alone():
        exec(code(run.checkpoint), {})
    expected = capsys.readouterr().out
    assert process.stdout.splitlines()[-1] == expected.splitlines()[-1]


# ---------------------------------------------------------------- the file's name


def test_the_name_has_the_digest_of_the_content(save, tmp_path):
    source = save(dict(state_dict=STATE, meta=dict(epoch=1)))
    out = publish(source, tmp_path / 'new' / 'net.pth').out
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert out.name == f'net-{digest[:8]}.pth'
    assert names(out.parent) == [out.name]
    # The same weights have the same digest under any name and with an optimizer.
    for again in (source, out,
                  save(dict(state_dict=STATE, meta=dict(epoch=1), optimizer={}),
                       'other.pth')):
        copy = publish(again, tmp_path / 'copy.pt', force=True).out
        assert copy.name == f'copy-{digest[:8]}.pt'
    assert publish(source, tmp_path / 'v1.0').out.name == f'v1.0-{digest[:8]}.pth'
    other = save(dict(state_dict={'a': STATE['weight'] + 1}))
    assert digest[:8] not in publish(other, tmp_path / 'net.pth').out.name


def test_existing_files_are_kept(save, tmp_path):
    source = save(dict(state_dict=STATE, optimizer=dict(a=1)))
    before = source.read_bytes()
    out = publish(source, source).out
    assert out != source and source.read_bytes() == before
    good = out.read_bytes()
    out.write_text('mine')
    with pytest.raises(FileExistsError, match='--force'):
        publish(source, source)
    assert out.read_text() == 'mine'
    publish(source, source, force=True)
    assert out.read_bytes() == good
    assert names(tmp_path) == [out.name, 'in.pth']


# ------------------------------------------------------------------------ weights


def test_views_and_shared_tensors(save, tmp_path):
    big = torch.rand(1000, 100)
    view, tied = big[3:5], torch.rand(50, 50)
    state = {
        'view': view,
        'view.again': big[3:5],
        'column': big[:, 0],
        'tied.0': tied,
        'tied.1': tied,
        'transposed': tied.t(),
        'scalar': big[7, 7],
        'parameter': nn.Parameter(torch.rand(3)),
        'empty': torch.rand(0, 3),
        'half': torch.rand(4).half(),
        'counter': torch.tensor(3),
        'sparse': torch.eye(3).to_sparse(),
    }
    source = save(dict(state_dict=state))
    report = publish(source, tmp_path / 'out.pth')
    found = load(report.out)['state_dict']
    sparse = found.pop('sparse')
    assert torch.equal(sparse.to_dense(), torch.eye(3))
    state.pop('sparse')
    assert_same(found, state)
    assert report.sizes[1] < 4 * (2500 + 1000 + 200) + 8000
    assert all(type(value) is torch.Tensor for value in found.values())
    for one, other in (('view', 'view.again'), ('tied.0', 'tied.1')):
        assert found[one].data_ptr() == found[other].data_ptr()
    assert not any(value.requires_grad for value in found.values())


class Scaled(nn.Linear):
    """A layer with an extra state, as in quantised networks."""

    def __init__(self, state) -> None:
        super().__init__(2, 3)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@pytest.mark.parametrize('extra', [
    dict(scale=torch.arange(3.), steps=[1, 2]), None, 7, 'fp8', b'bytes',
    dict(dtype=torch.float16, shape=(2, 3))])
@pytest.mark.parametrize('nested', [True, False])
def test_extra_states_are_kept(save, tmp_path, extra, nested):
    model = nn.Sequential(Scaled(extra), nn.Linear(3, 1))
    state = model.state_dict()
    source = save(dict(state_dict=state, meta={}) if nested else state)
    report = publish(source, tmp_path / 'out.pth')
    assert report.tensors == 4
    loaded = load(report.out)['state_dict']
    again = nn.Sequential(Scaled('none'), nn.Linear(3, 1))
    again.load_state_dict(loaded)  # strictly
    assert str(again[0].state) == str(extra)
    assert torch.equal(again[0].weight, model[0].weight)


def test_other_values_among_the_tensors(save, tmp_path):
    state = dict(STATE, step=12, _extra_state=[torch.zeros(9**5)[:2]])
    report = publish(save(state), tmp_path / 'out.pth')
    assert report.sizes[1] < 9**5
    found = load(report.out)['state_dict']
    assert found['_extra_state'][0].shape == (2, ) and found['step'] == 12
    with pytest.raises(ValueError, match='history.*numpy array'):
        publish(save(dict(STATE, history=np.arange(3))), tmp_path / 'out.pth')


LAST = {f'module.{key}': value + 1 for key, value in STATE.items()}


@pytest.mark.parametrize('content, words, dropped', [
    (STATE, (), ()),
    (dict(model=STATE, optimizer={}), ('those under model', ), ('optimizer', )),
    (dict(state_dict=STATE, ema_state_dict=LAST), ('averaged', ),
     ('ema_state_dict', ))])
def test_which_weights_are_published(save, tmp_path, content, words, dropped):
    report = publish(save(content), tmp_path / 'out.pth')
    assert_same(load(report.out)['state_dict'], STATE)
    text = '\n'.join(report.lines())
    assert 'no config' in text
    assert tuple(w for w in ('those under model', 'averaged') if w in text) == words
    assert report.dropped == dropped


# --------------------------------------------------------------------------- meta


def test_meta_has_only_plain_types(save, tmp_path):
    kept = dict(cfg='a = 1', CLASSES=('cat', ), mmdet_version='3.3.0')
    data = OrderedDict(classes=('cat', ), palette=np.array([[1, 2, 3]]),
                       weight=torch.tensor([.5]))
    removed = dict(hook_msgs=dict(path='/home/me'), time='now', env_info='host')
    meta = dict(kept, epoch=np.float64(3), dataset_meta=data, **removed)
    out = publish(
        save(dict(state_dict=STATE, meta=meta)), tmp_path / 'out.pth').out
    found = load(out)['meta']
    assert found.pop('fpt_plugin_version')
    assert found == dict(kept, epoch=3., dataset_meta=dict(
        classes=('cat', ), palette=[[1, 2, 3]], weight=[.5]))
    assert type(found['dataset_meta']) is dict


def test_meta_from_the_message_hub():
    hub = dict(
        runtime_info=dict(cfg='b = 2', epoch=4, dataset_meta={'classes': ('a', )}),
        log_scalars=dict(loss=HistoryBuffer([1.], [1])))
    meta, dropped = clean_meta(dict(message_hub=hub, meta=dict(epoch=5)))
    assert meta['cfg'] == 'b = 2' and meta['epoch'] == 5
    assert meta['dataset_meta'] == {'classes': ('a', )} and not dropped


def test_objects_in_meta_are_removed():
    meta, dropped = clean_meta(dict(meta=dict(seed=object(), cfg='a')))
    assert 'seed' not in meta and dropped == ['meta.seed']
    assert type(plain(ConfigDict(a=[ConfigDict(b=1)]))['a'][0]) is dict
    assert plain({1, }) == [1] and plain(np.str_('a')) == 'a'
    assert plain((True, None, np.bool_(False))) == (True, None, False)
    assert type(plain(np.bool_(False))) is bool
    for value in (object(), [Path('a')], np.longdouble(1), np.array([object()])):
        with pytest.raises(TypeError, match='plain'):
            plain(value)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize('content, source, out, error, words', [
    (dict(epoch=1), 'in.pth', 'out.pth', ValueError, 'holds no state dict'),
    (STATE, 'none.pth', 'out.pth', FileNotFoundError, 'none.pth'),
    (STATE, 'in.pth', '', IsADirectoryError, 'name the file'),
    (STATE, 'in.pth', 'out.safetensors', ValueError, r'name it \.pth'),
    (STATE, 'in.pth', 'in.pth/out.pth', OSError, 'exists|irectory'),
    (STATE, 'in.pth', 'out.pth', OSError, 'disk full')])
def test_a_failure_writes_nothing(content, source, out, error, words, save, tmp_path,
                                  monkeypatch):
    def full(self, data):
        self.touch()
        raise OSError('disk full')

    save(content)
    monkeypatch.setattr(module.Path, 'write_bytes', full)
    with pytest.raises(error, match=words):
        publish(tmp_path / source, tmp_path / out)
    assert names(tmp_path) == ['in.pth']


def test_the_command(save, tmp_path, capsys):
    source = save(dict(state_dict=STATE, optimizer={}, meta=dict(cfg='a = 1')))
    out = tmp_path / 'out.pth'
    report = main(parser().parse_args([str(source), str(out)]))
    text = capsys.readouterr().out
    assert re.search(r'written .*out-[0-9a-f]{8}\.pth', text)
    assert str(report.out) in text and 'left out optimizer' in text
