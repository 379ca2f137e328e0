"""What is installed: the wheel, its ``.mim`` data, ``fpt_plugin::`` configs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from packaging.requirements import Requirement

import fpt_plugin
from fpt_plugin.openmmlab import fixes

ROOT = Path(__file__).parents[2]
CONFIG = 'fpt/faster-rcnn_r50_fpt_1x_coco.py'


def run(*command, **kwargs) -> subprocess.CompletedProcess:
    """Run in an environment that does not lead back to this checkout."""
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    result = subprocess.run([str(part) for part in command],
                            capture_output=True,
                            text=True,
                            env=env,
                            **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


# What a checkout has beside what git keeps.
LEFT = ('.*', 'data', 'work_dirs', 'build', 'dist', '__pycache__', '*.egg-info')


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy: building leaves folders in the source that outlive files.

    Its other folders look like packages, as those of a careless user would.
    """
    source = tmp_path_factory.mktemp('source') / 'checkout'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT))
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
    """Built from the source distribution, as an index would serve it."""
    return build_wheel(sdist, tmp_path_factory.mktemp('wheel'))


def install(wheel: Path, folder: Path, beside: str | Path) -> Path:
    """Put the wheel into a new environment; its python.

    Args:
        wheel: The wheel.
        folder: Gets the environment, of which the wheel is all.
        beside: Packages that can be imported there, too. A path in a .pth file
            is not searched for .pth files itself, so that the editable install
            of this checkout is not seen.
    """
    run(sys.executable, '-m', 'venv', '--without-pip', folder)
    python = folder / 'bin' / 'python'
    (site_of(python) / 'beside.pth').write_text(str(beside))
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet',
        '--no-deps', '--no-index', wheel)
    return python


def site_of(python: Path) -> Path:
    site, = python.parents[1].glob('lib/python*/site-packages')
    return site


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> Path:
    """Another environment that has the wheel; the hosts are this one's."""
    return install(wheel, tmp_path_factory.mktemp('environment'),
                   sysconfig.get_paths()['purelib'])


def distributions_of(name: str) -> dict[str, Distribution]:
    """A distribution and all that it requires, by their names."""
    found, names = {}, [name]
    while names:
        name = names.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate({'extra': ''}):
                names.append(requirement.name)
    return found


@pytest.fixture(scope='module')
def lean(wheel, tmp_path_factory) -> Path:
    """An environment of the wheel and torch, without any host."""
    beside = tmp_path_factory.mktemp('torch')
    for found in distributions_of('torch').values():
        tops = {file.parts[0] for file in found.files} - {'..', '__pycache__'}
        for top in tops:
            if not (beside / top).exists():
                (beside / top).symlink_to(found.locate_file(top))
    return install(wheel, tmp_path_factory.mktemp('lean'), beside)


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


def contents(wheel):
    archive = zipfile.ZipFile(wheel)
    return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_of_the_checkout_is_that_of_the_sdist(source, wheel,
                                                      tmp_path):
    copy = tmp_path / 'checkout'
    shutil.copytree(source, copy)
    mine, other = contents(build_wheel(copy, tmp_path / 'wheel')), contents(wheel)
    assert mine.keys() == other.keys()
    assert [name for name in mine if mine[name] != other[name]] == []


def test_the_sdist_holds_what_a_wheel_needs_and_no_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = [Path(name).parts[1:] for name in archive.getnames()]
    tops = {parts[0] for parts in names if parts}
    assert tops == {
        'fpt_plugin', 'fpt_plugin.egg-info', 'configs', 'tools', 'resources',
        'CHANGELOG.md', 'LICENSE', 'MANIFEST.in', 'PKG-INFO', 'README.md',
        'model-index.yml', 'pyproject.toml', 'setup.cfg', 'setup.py'
    }


def test_the_description_has_no_relative_links(sdist):
    """An index shows the README away from its repository."""
    with tarfile.open(sdist) as archive:
        name, = (name for name in archive.getnames()
                 if Path(name).parts[1:] == ('PKG-INFO', ))
        text = archive.extractfile(name).read().decode()
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    assert any('arxiv.org' in target for target in targets)
    assert all(target.startswith('https://') for target in targets)
    assert '[Get started]' not in text and 'Get started' in text


def test_nothing_but_the_package_is_installed(environment):
    site = site_of(environment)
    info = f'fpt_plugin-{fpt_plugin.__version__}.dist-info'
    assert {path.name for path in site.iterdir()
            } == {'fpt_plugin', info, 'beside.pth'}
    # nor anywhere else: scripts, data files, headers
    lines = (site / info / 'RECORD').read_text().splitlines()
    assert {line.partition('/')[0] for line in lines} == {'fpt_plugin', info}
    assert (site / info / 'top_level.txt').read_text().split() == ['fpt_plugin']
    licences = [line for line in lines if '/LICENSE' in line]
    assert len(licences) == 1


def test_functional_works_where_torch_alone_is(lean, tmp_path):
    result = run(lean, '-c', """
import importlib.util, sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'rich', 'pip'):
    assert importlib.util.find_spec(name) is None, name
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
    file, shape, said = result.stdout.splitlines()
    assert Path(file).is_relative_to(site_of(lean))
    assert shape == 'torch.Size([1, 3, 4])'
    assert 'need mmengine and mmcv' in said


@pytest.mark.parametrize('tool', [
    pytest.param(path.name, marks=() if path.name in (
        'convert_weights.py', 'doctor.py') else pytest.mark.slow)
    for path in sorted((ROOT / 'tools').glob('*.py'))])
def test_installed_tools_run(environment, tool, tmp_path):
    """Those that ``mim`` calls, and the package they use is the wheel's."""
    result = run(environment, site_of(environment) / 'fpt_plugin/.mim/tools' / tool,
                 '--help', cwd=tmp_path)
    assert result.stdout.startswith(f'usage: {tool}')


def test_an_installed_wheel_has_the_commands(environment, tmp_path):
    """From an empty folder, which has no tools/ and no configs/."""
    module = [environment, '-m', 'fpt_plugin']
    assert 'graft' in run(*module, cwd=tmp_path).stdout
    config = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
    result = run(*module, 'graft', config, '--out', 'x.py', '--no-costs',
                 cwd=tmp_path)
    assert 'predictions' in result.stdout and result.stderr == ''
    assert Config.fromfile(tmp_path / 'x.py').model.neck.type == 'FPT'
    doctor = run(*module, 'doctor', cwd=tmp_path).stdout
    assert 'everything works' in doctor
    assert str(site_of(environment)) in doctor
    assert {path.name for path in tmp_path.iterdir()} == {'x.py'}


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
    monkeypatch.setattr(fixes, 'version_of', installed.get)
    fixes.find_config_packages()
    assert MODULE2PACKAGE['mmseg'] == 'mmsegmentation'
    installed.clear()
    installed['onedl-mmsegmentation'] = '1.4.2'
    fixes.find_config_packages()
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
    from helpers.miniature_coco import write_coco_tree
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
    tool = site_of(environment) / 'fpt_plugin' / '.mim' / 'tools' / 'train.py'
    result = run(environment, tool, config, '--work-dir', tmp_path / 'run',
                 '--cfg-options', 'train_dataloader.dataset.pipeline.2.scale='
                 '(160,128)', 'val_dataloader.dataset.pipeline.1.scale='
                 '(160,128)', cwd=tmp_path)
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    # a single epoch finds nothing: COCO's metric says so
    assert 'Epoch(val) [1]' in result.stdout + result.stderr
