"""What is installed: the wheel, its ``.mim`` data, ``fpt_plugin::`` configs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config

import fpt_plugin
from fpt_plugin import compat

ROOT = Path(__file__).parents[1]
CONFIG = 'fpt/faster-rcnn_r50_fpt_1x_coco.py'


def run(*command, **kwargs) -> subprocess.CompletedProcess:
    result = subprocess.run([str(part) for part in command],
                            capture_output=True,
                            text=True,
                            **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy: building leaves folders in the source that outlive files."""
    source = tmp_path_factory.mktemp('source')
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for folder in ('fpt_plugin', 'configs', 'tools', 'resources'):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    (source / 'tests').mkdir()
    (source / 'tests' / '__init__.py').touch()
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE',
                 'CHANGELOG.md', 'MANIFEST.in', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    """Built from the source distribution, as an index would serve it."""
    folder = tmp_path_factory.mktemp('wheel')
    run(sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', folder,
        cwd=source)
    archive, = folder.glob('*.tar.gz')
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
        '--no-build-isolation', '--wheel-dir', folder, archive)
    wheel, = folder.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> Path:
    """Another environment that has the wheel; the hosts are this one's."""
    folder = tmp_path_factory.mktemp('environment')
    run(sys.executable, '-m', 'venv', '--without-pip', folder)
    python = folder / 'bin' / 'python'
    # A path in a .pth file is not searched for .pth files itself, so that the
    # editable install of this checkout is not seen.
    site, = folder.glob('lib/python*/site-packages')
    (site / 'hosts.pth').write_text(sysconfig.get_paths()['purelib'])
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet',
        '--no-deps', '--no-index', wheel)
    return python


def test_wheel_holds_the_package_and_its_data(source, wheel):
    assert fpt_plugin.__version__ in wheel.name
    names = {
        Path(name) for name in zipfile.ZipFile(wheel).namelist()
        if '.dist-info/' not in name
    }
    assert {name.parts[0] for name in names} == {'fpt_plugin'}
    data = {name for name in names if name.parts[1] == '.mim'}

    def files(folder):
        return {
            file.relative_to(source)
            for file in (source / folder).rglob('*')
            if file.is_file() and '__pycache__' not in file.parts
            and '.mim' not in file.parts
        }

    assert names - data == files('fpt_plugin')
    assert Path('fpt_plugin/py.typed') in names
    assert {name.relative_to('fpt_plugin/.mim') for name in data
            } == files('configs') | files('tools') | {Path('model-index.yml')}


def test_editable_install_links_the_checkout(source, tmp_path):
    """What ``pip install -e`` does, without an environment to install into."""
    checkout = tmp_path / 'checkout'
    shutil.copytree(source, checkout)
    for _ in range(2):  # again over what is there
        run(sys.executable, 'setup.py', '--quiet', 'editable_wheel',
            '--dist-dir', tmp_path / 'dist', cwd=checkout)
        data = checkout / 'fpt_plugin' / '.mim'
        assert {path.name for path in data.iterdir()
                } == {'configs', 'tools', 'model-index.yml'}
        assert all(path.is_symlink() for path in data.iterdir())
    (checkout / 'configs' / 'fpt' / 'mine.py').write_text('a = 1')
    assert (data / 'configs/fpt/mine.py').read_text() == 'a = 1'


def test_bases_of_the_plugin(tmp_path):
    own = tmp_path / 'mine.py'
    own.write_text(f"_base_ = 'fpt_plugin::{CONFIG}'\n"
                   'train_dataloader = dict(dataset=dict('
                   'pipeline=_base_.train_pipeline))\n'
                   'model = dict(neck=dict(embed_channels=64))')
    cfg = Config.fromfile(own)
    assert cfg.model.neck.type == 'FPT'
    assert cfg.model.neck.in_channels == [256, 512, 1024, 2048]
    # mmcv has transforms of the same names: they must stay mmdet's
    assert {step['_scope_']
            for step in cfg.train_dataloader.dataset.pipeline} == {'mmdet'}
    assert get_config(f'fpt_plugin::{CONFIG}').model.neck.type == 'FPT'
    quickstart = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
    assert get_config(f'fpt_plugin::{quickstart}').model.neck.type == 'FPT'


def test_hosts_bases_keep_their_scope(tmp_path):
    own = tmp_path / 'mine.py'
    own.write_text("_base_ = 'mmdet::_base_/datasets/coco_detection.py'\n"
                   'pipeline = _base_.train_pipeline')
    assert Config.fromfile(own).pipeline[0]['_scope_'] == 'mmdet'


def test_bases_of_the_fork(monkeypatch):
    """Its mmseg is a distribution that mmengine's table does not name."""
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    installed = {'mmsegmentation': '1.2.2'}
    monkeypatch.setattr(compat, '_version_of', installed.get)
    compat.find_config_packages()
    assert MODULE2PACKAGE['mmseg'] == 'mmsegmentation'
    installed.clear()
    installed['onedl-mmsegmentation'] = '1.4.2'
    compat.find_config_packages()
    assert MODULE2PACKAGE['mmseg'] == 'onedl-mmsegmentation'


def test_bases_of_mmseg(tmp_path):
    own = tmp_path / 'mine.py'
    own.write_text("_base_ = 'mmseg::_base_/models/fpn_r50.py'")
    assert Config.fromfile(own).model.type == 'EncoderDecoder'


def test_the_wheel_finds_its_own_configs(environment, tmp_path):
    result = run(environment, '-c', 'import fpt_plugin\n'
                 'from mmengine.hub import get_config\n'
                 f'print(get_config("fpt_plugin::{CONFIG}").filename)',
                 cwd=tmp_path)
    assert str(environment.parents[1]) in result.stdout


@pytest.mark.slow
def test_the_wheel_trains_from_its_own_configs(environment, tmp_path):
    """By the tool that ``mim train fpt_plugin`` would call."""
    from coco_tree import write_coco_tree
    write_coco_tree(tmp_path / 'coco')
    config = tmp_path / 'mine.py'
    config.write_text(f"""
_base_ = 'fpt_plugin::{CONFIG}'
data_root = 'coco/'
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
model = dict(backbone=dict(init_cfg=None))
train_cfg = dict(max_epochs=1)
""")
    site, = environment.parents[1].glob('lib/python*/site-packages')
    tool = site / 'fpt_plugin' / '.mim' / 'tools' / 'train.py'
    result = run(environment, tool, config, '--work-dir', tmp_path / 'run',
                 '--cfg-options', 'train_dataloader.dataset.pipeline.2.scale='
                 '(160,128)', 'val_dataloader.dataset.pipeline.1.scale='
                 '(160,128)', cwd=tmp_path, env=dict(os.environ))
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    # a single epoch finds nothing: COCO's metric says so
    assert 'Epoch(val) [1]' in result.stdout + result.stderr
