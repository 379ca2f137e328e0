"""Malicious checkpoints, downloads and archives run nothing and write nothing."""

from __future__ import annotations

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
from fpt_plugin.commands.quickstart.nuclei import read_mask
from fpt_plugin.commands.quickstart.packages import Package, read_member
from fpt_plugin.commands.same_settings import train_or_go_on

ROOT = Path(__file__).parents[2]


class Evil:
    """Write a file when this is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (f'open({str(self.mark)!r}, "w").close()', )


@pytest.fixture
def mark(tmp_path):
    """Return the file that exists after a pickle has run."""
    return tmp_path / 'it-ran'


def zipped(content, path):
    torch.save(content, path)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


def assert_live(path, mark):
    """Assert that unsafe reading runs the file; delete its mark."""
    try:
        torch.load(path, weights_only=False)
    except Exception:  # torch may fail on other formats
        with open(path, 'rb') as file:
            pickle.load(file)
    assert mark.exists()
    mark.unlink()


# ----------------------------------------------------------------- checkpoints


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return train(next(iter(DETECTORS)), tmp_path_factory.mktemp('trained'))


def infected(trained, form, mark, path):
    """Write a real checkpoint with a malicious object in it."""
    content = torch.load(trained.checkpoint, weights_only=True)
    content['meta']['more'] = Evil(mark)
    form(content, path)
    assert_live(path, mark)
    return path


def run_tool(name, *args, folder):
    """Run a tool; return its last message, or None if it succeeds."""
    with pytest.MonkeyPatch.context() as patch, alone(), inside(folder):
        patch.setattr(sys, 'argv', [name, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as ended:
            return ended.code or None
        except (pickle.UnpicklingError, RuntimeError) as error:
            return str(error)
    return None


@pytest.mark.parametrize('form', [zipped, legacy, pickled])
@pytest.mark.parametrize('tool', [
    'convert_weights.py', 'publish_model.py', 'visualize_attention.py', 'graft.py'])
def test_tools_run_nothing_of_a_checkpoint(trained, form, tool, mark, tmp_path):
    path = infected(trained, form, mark, tmp_path / 'evil.pth')
    out = tmp_path / 'out'
    args = {
        'convert_weights.py': ('torchvision-resnet', path, out / 'o.pth'),
        'publish_model.py': (path, out / 'o.pth'),
        'visualize_attention.py': (trained.config, path, trained.images[0], '--point',
                                   '9,9', '--out', out / 'o.png'),
        'graft.py': ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '--checkpoint',
                     path, '--no-costs', '--out', out / 'o.py'),
    }[tool]
    assert 'evil.pth' in run_tool(tool, *args, folder=tmp_path)
    assert not mark.exists()
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize('nest', ['state_dict', 'model', 'optimizer', ''])
def test_malicious_object_at_any_key(nest, mark, tmp_path):
    state = {'conv1.weight': torch.rand(8, 3, 7, 7)}
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': state, nest: Evil(mark)} if nest else
               dict(state, more=Evil(mark)), path)
    assert_live(path, mark)
    for tool, args in (('convert_weights.py', ['torchvision-resnet']),
                       ('publish_model.py', [])):
        said = run_tool(tool, *args, path, tmp_path / 'o.pth', folder=tmp_path)
        assert 'exec' in said and not mark.exists()
    assert [p.name for p in tmp_path.iterdir()] == ['evil.pth']


def test_pickle_under_the_name_of_another_format(mark, tmp_path):
    path = tmp_path / 'evil.safetensors'
    pickled(dict(state_dict=Evil(mark)), path)
    said = run_tool('publish_model.py', path, tmp_path / 'o.pth', folder=tmp_path)
    assert 'evil.safetensors' in said and not mark.exists()
    image = path.rename(tmp_path / 'evil.png')
    assert cv2.imread(str(image)) is None and not mark.exists()


# The file of a URL is in the cache already: nothing is downloaded.
@pytest.mark.parametrize('way', ['file', 'URL'])
@pytest.mark.parametrize('tool', ['test.py', 'train.py --resume',
                                  'train.py load_from'])
def test_runner_runs_nothing_of_a_checkpoint(trained, tool, way, mark, tmp_path,
                                             monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    cache = tmp_path / 'hub' / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    path = infected(trained, zipped, mark, cache / 'evil.pth')
    given = path if way == 'file' else 'https://a.example/evil.pth'
    name, _, how = tool.partition(' ')
    args = {'': [given], '--resume': ['--resume', given],
            'load_from': ['--cfg-options', f'load_from={given}']}[how]
    said = run_tool(name, trained.config, *args, folder=tmp_path)
    assert not mark.exists()
    assert 'Weights only load failed' in said or 'exec' in said


def test_runner_reads_genuine_checkpoints(trained, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    shutil.copy(trained.checkpoint, tmp_path / 'hub/checkpoints/good.pth')
    for given in (trained.checkpoint, 'https://a.example/good.pth'):
        assert run_tool('test.py', trained.config, given, folder=tmp_path) is None


def test_quickstart_reads_only_weights(mark, tmp_path, monkeypatch):
    path = tmp_path / 'evil.pth'
    torch.save(Evil(mark), path)
    monkeypatch.setattr(
        Runner, 'from_cfg', lambda cfg: torch.load(path, weights_only=False))
    cfg = quickstart.quickstart_config('detection', 'fpt', epochs=1, seed=0,
                                       work_dir=str(tmp_path))
    with pytest.raises(pickle.UnpicklingError):
        train_or_go_on(cfg, fresh=True)
    assert not mark.exists()


# -------------------------------------------------------------------- downloads


def packages() -> dict[str, Package]:
    """Return all wheels that modules of the package download."""
    return {value.requirement: value
            for module in pkgutil.walk_packages(fpt_plugin.__path__, 'fpt_plugin.')
            for value in vars(import_module(module.name)).values()
            if isinstance(value, Package)}


PACKAGES = packages()


def test_every_download_has_a_version_and_a_digest():
    assert len(PACKAGES) >= 3
    for package in PACKAGES.values():
        name, version = package.requirement.split('==')
        assert re.fullmatch('[0-9a-f]{64}', package.sha256)
        assert package.wheel.startswith(f"{name.replace('-', '_')}-{version}-")


@pytest.mark.parametrize('requirement', PACKAGES)
def test_another_file_is_refused_and_deleted(requirement, tmp_path, monkeypatch):

    def download(self, folder):
        (folder / self.wheel).write_bytes(b'PK: not what was released')

    monkeypatch.setattr(Package, '_download', download)
    with pytest.raises(RuntimeError, match='is not the expected file'):
        PACKAGES[requirement].fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------- archives


def link(name, target):
    """Return a member of an archive that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


@pytest.mark.parametrize('member', [
    ('../outside.txt', b'evil'), ('a/../../outside.txt', b'evil'),
    ('/outside.txt', b'evil'), ('..\\outside.txt', b'evil'),
    link('inside/link', b'../../outside.txt')],
    ids=lambda m: str(getattr(m[0], 'filename', m[0])))
def test_members_are_read_and_never_unpacked(member, tmp_path, monkeypatch):
    """No name in an archive becomes the name of a file."""
    folder = tmp_path / 'a' / 'b'
    folder.mkdir(parents=True)
    wheel = folder / 'evil.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr(*member)
        archive.writestr('inside/data.bin', b'good')
    monkeypatch.chdir(folder)
    before = sorted(tmp_path.rglob('*'))
    assert read_member(wheel, 'inside/data.bin') == b'good'
    assert read_member(wheel, zipfile.ZipFile(wheel).namelist()[0]) == member[1]
    with pytest.raises(RuntimeError, match='does not contain'):
        read_member(wheel, 'inside/link/data.bin')
    assert sorted(tmp_path.rglob('*')) == before
    assert not os.path.exists('/outside.txt')


def test_array_of_objects_in_an_archive_is_refused(mark):
    """The format of numpy can hold pickles."""
    buffer = io.BytesIO()
    np.savez(buffer, nuc_raster=np.array([[Evil(mark)]], dtype=object))
    np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True)['nuc_raster']
    assert mark.exists()
    mark.unlink()
    with pytest.raises(ValueError, match='allow_pickle'):
        read_mask(buffer.getvalue())
    assert not mark.exists()
