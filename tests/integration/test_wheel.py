"""The source distribution, the wheel with its ``.mim`` data, and what it installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

import fpt_plugin

ROOT = Path(__file__).parents[2]
CONFIG = 'fpt/faster-rcnn_r50_fpt_1x_coco.py'


def run(*command, **kwargs) -> subprocess.CompletedProcess:
    """Run a command that cannot import this checkout."""
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    result = subprocess.run([str(part) for part in command], capture_output=True,
                            text=True, env=env, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


# Files of a checkout that git does not keep.
UNTRACKED = ('.*', 'data', 'work_dirs', 'build', 'dist', '__pycache__', '*.egg-info')


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """Copy the checkout: a build leaves folders in the source that outlive files.

    The other folders get an ``__init__.py``, as if they were packages, too.
    """
    source = tmp_path_factory.mktemp('source') / 'checkout'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*UNTRACKED))
    for folder in ('tests', 'tools', 'benchmarks', 'resources'):
        (source / folder / '__init__.py').touch()
    return source


def build_wheel(source: Path, folder: Path) -> Path:
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
        '--no-index', '--no-build-isolation', '--wheel-dir', folder, source)
    wheel, = folder.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def sdist(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('sdist')
    run(sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', folder,
        cwd=source)
    archive, = folder.glob('*.tar.gz')
    return archive


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory) -> Path:
    """Build the wheel from the source distribution, as from an index."""
    return build_wheel(sdist, tmp_path_factory.mktemp('wheel'))


def site_of(python: Path) -> Path:
    site, = python.parents[1].glob('lib/python*/site-packages')
    return site


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> Path:
    """Make an environment of the wheel and this one's packages; return its python.

    A .pth file adds the packages. Python reads no .pth files in that folder, so that
    the editable install of this checkout is not seen.
    """
    folder = tmp_path_factory.mktemp('environment')
    run(sys.executable, '-m', 'venv', '--without-pip', folder)
    python = folder / 'bin' / 'python'
    (site_of(python) / 'beside.pth').write_text(sysconfig.get_paths()['purelib'])
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet',
        '--no-deps', '--no-index', wheel)
    return python


# ------------------------------------------------------------------ contents


def test_wheel_holds_the_package_and_its_data(source, wheel):
    assert fpt_plugin.__version__ in wheel.name
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()
             if '.dist-info/' not in name}
    assert {name.parts[0] for name in names} == {'fpt_plugin'}
    data = {name for name in names if name.parts[1] == '.mim'}

    def files(folder):
        return {file.relative_to(source) for file in (source / folder).rglob('*')
                if file.is_file() and not {'__pycache__', '.mim'} & {*file.parts}}

    assert names - data == files('fpt_plugin')
    assert Path('fpt_plugin/py.typed') in names
    assert {name.relative_to('fpt_plugin/.mim') for name in data} == files(
        'configs') | files('tools') | {Path('model-index.yml')}


def test_checkout_and_sdist_give_the_same_wheel(source, wheel, tmp_path):
    def contents(wheel):
        archive = zipfile.ZipFile(wheel)
        return {name: archive.read(name) for name in archive.namelist()}

    copy = shutil.copytree(source, tmp_path / 'checkout')
    mine, other = contents(build_wheel(copy, tmp_path / 'wheel')), contents(wheel)
    assert mine.keys() == other.keys()
    assert [name for name in mine if mine[name] != other[name]] == []


def test_sdist_holds_no_tests_and_no_relative_links(sdist):
    """A package index shows the README away from its repository."""
    with tarfile.open(sdist) as archive:
        names = {Path(name).parts[1:]: name for name in archive.getnames()}
        text = archive.extractfile(names['PKG-INFO', ]).read().decode()
    assert {parts[0] for parts in names if parts} == {
        'fpt_plugin', 'fpt_plugin.egg-info', 'configs', 'tools', 'resources',
        'CHANGELOG.md', 'LICENSE', 'MANIFEST.in', 'PKG-INFO', 'README.md',
        'model-index.yml', 'pyproject.toml', 'setup.cfg', 'setup.py'}
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    assert any('arxiv.org' in target for target in targets)
    assert all(target.startswith('https://') for target in targets)
    assert '[Get started]' not in text and 'Get started' in text


# ---------------------------------------------------------------- installation


def test_only_the_package_is_installed(environment):
    site = site_of(environment)
    info = f'fpt_plugin-{fpt_plugin.__version__}.dist-info'
    assert {path.name for path in site.iterdir()} == {'fpt_plugin', info, 'beside.pth'}
    # No scripts, data files or headers elsewhere.
    lines = (site / info / 'RECORD').read_text().splitlines()
    assert {line.partition('/')[0] for line in lines} == {'fpt_plugin', info}
    assert (site / info / 'top_level.txt').read_text().split() == ['fpt_plugin']
    assert sum('/LICENSE' in line for line in lines) == 1


def test_functional_needs_only_torch(environment, tmp_path):
    result = run(environment, '-c', """
import sys  # None: the module cannot be imported
sys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'rich')))
import torch
from fpt_plugin import functional
x = torch.rand(1, 2, 3, 4)
print(functional.__file__)
print(functional.mixture_attention(x, x, x[:, 0], torch.ones(1, 2)).shape)
import fpt_plugin
try:
    fpt_plugin.FPT
except AttributeError as error:
    print(error)
""", cwd=tmp_path)
    file, shape, message = result.stdout.splitlines()
    assert Path(file).is_relative_to(site_of(environment))
    assert shape == 'torch.Size([1, 3, 4])'
    assert 'need mmengine and mmcv' in message


@pytest.mark.parametrize('tool', [
    pytest.param(path.name, marks=() if path.name in (
        'convert_weights.py', 'doctor.py') else pytest.mark.slow)
    for path in sorted((ROOT / 'tools').glob('*.py'))])
def test_installed_tools_run(environment, tool, tmp_path):
    """The files that ``mim`` calls use the package of the wheel."""
    result = run(environment, site_of(environment) / 'fpt_plugin/.mim/tools' / tool,
                 '--help', cwd=tmp_path)
    assert result.stdout.startswith(f'usage: {tool}')


def test_installed_wheel_has_commands_and_configs(environment, tmp_path):
    """The working folder is empty, without tools/ and configs/."""
    module = [environment, '-m', 'fpt_plugin']
    assert 'graft' in run(*module, cwd=tmp_path).stdout
    config = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
    result = run(*module, 'graft', config, '--out', 'x.py', '--no-costs', cwd=tmp_path)
    assert 'predictions' in result.stdout and result.stderr == ''
    assert Config.fromfile(tmp_path / 'x.py').model.neck.type == 'FPT'
    doctor = run(*module, 'doctor', cwd=tmp_path).stdout
    assert 'everything works' in doctor
    assert str(site_of(environment)) in doctor
    assert {path.name for path in tmp_path.iterdir()} == {'x.py'}
    result = run(environment, '-c', 'import fpt_plugin\n'
                 'from mmengine.hub import get_config\n'
                 f'print(get_config("fpt_plugin::{CONFIG}").filename)', cwd=tmp_path)
    assert str(environment.parents[1]) in result.stdout


def test_editable_install_links_the_checkout(source, tmp_path):
    """Run the step of ``pip install -e`` without installing."""
    checkout = shutil.copytree(source, tmp_path / 'checkout')
    for _ in range(2):  # the second time over existing links
        run(sys.executable, 'setup.py', '--quiet', 'editable_wheel',
            '--dist-dir', tmp_path / 'dist', cwd=checkout)
        data = checkout / 'fpt_plugin' / '.mim'
        assert {path.name for path in data.iterdir()} == {
            'configs', 'tools', 'model-index.yml'}
        assert all(path.is_symlink() for path in data.iterdir())
    (checkout / 'configs' / 'fpt' / 'mine.py').write_text('a = 1')
    assert (data / 'configs/fpt/mine.py').read_text() == 'a = 1'


# ----------------------------------------------------------------------- bases


def test_bases_keep_their_scope(tmp_path):
    """mmcv has transforms of the same names, which must not be built instead."""
    own = tmp_path / 'mine.py'
    own.write_text(f"_base_ = 'fpt_plugin::{CONFIG}'\n"
                   'train_dataloader = dict(dataset=dict('
                   'pipeline=_base_.train_pipeline))\n'
                   'model = dict(neck=dict(embed_channels=64))')
    cfg = Config.fromfile(own)
    assert (cfg.model.neck.type, cfg.model.neck.embed_channels) == ('FPT', 64)
    assert cfg.model.neck.in_channels == [256, 512, 1024, 2048]
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert {step['_scope_'] for step in pipeline} == {'mmdet'}
    own.write_text("_base_ = 'mmdet::_base_/datasets/coco_detection.py'\n"
                   'pipeline = _base_.train_pipeline')
    assert Config.fromfile(own).pipeline[0]['_scope_'] == 'mmdet'
    for name in (CONFIG, 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'):
        assert get_config(f'fpt_plugin::{name}').model.neck.type == 'FPT'
