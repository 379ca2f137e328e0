"""The package as a whole: what it imports, exports and installs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fpt_plugin
from fpt_plugin.commands.doctor.probe import try_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'fpt_plugin'


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code],
                          cwd=ROOT,
                          capture_output=True,
                          text=True,
                          timeout=300)


WITHOUT_HOSTS = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: (
    None if name in ('mmengine', 'mmcv') else find_spec(name, *args))
"""


def test_functional_needs_torch_alone():
    result = python(WITHOUT_HOSTS + """
import torch
from fpt_plugin.functional import mixture_attention
x = torch.randn(1, 2, 3, 4)
print(mixture_attention(x, x, x[:, 0], torch.ones(1, 2)).shape)
assert not {'mmengine', 'mmcv', 'cv2'} & set(sys.modules)
import fpt_plugin
fpt_plugin.FPT
""")
    assert 'torch.Size([1, 3, 4])' in result.stdout
    assert 'needs' not in result.stdout
    assert 'AttributeError' in result.stderr
    assert 'need mmengine and mmcv' in result.stderr


def test_import_registers_everything():
    from mmengine.registry import (
        DATASETS,
        HOOKS,
        METRICS,
        MODELS,
        OPTIM_WRAPPER_CONSTRUCTORS,
        TRANSFORMS,
    )
    registries = (DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS,
                  TRANSFORMS)
    for name in fpt_plugin.__all__:
        if name != '__version__':
            assert getattr(fpt_plugin, name) in [
                registry.module_dict.get(name) for registry in registries]


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_no_name_is_a_librarys(library):
    """Its scope is looked up first: a class of that name would be built."""
    names = try_names(library)['names']
    assert {*names, '__version__'} == {*fpt_plugin.__all__}


# Each subpackage: what it may import of ours, and of others beside the standard
# library; None: anything. Below commands, mmdet and mmseg are reached through the
# registry, never by import.
HOSTS = {'mmengine', 'mmcv'}
LAYERS = {
    'functional': (set(), {'torch'}),
    'io': (set(), {'torch', 'safetensors'}),
    'openmmlab': ({'functional', 'io'}, {'torch', 'numpy', *HOSTS}),
    'layers': ({'functional', 'openmmlab'}, {'torch', *HOSTS}),
    'necks': ({'functional', 'io', 'layers', 'openmmlab'}, {'torch', *HOSTS}),
    'backbones': ({'functional', 'layers', 'openmmlab'}, {'torch', *HOSTS}),
    'detectors': ({'functional', 'layers', 'necks', 'openmmlab'},
                  {'torch', 'mmengine'}),
    'restoration': ({'functional', 'layers', 'openmmlab'},
                    {'torch', 'numpy', *HOSTS}),
    'pretraining': ({'functional', 'layers', 'necks', 'openmmlab',
                     'restoration'},
                    {'torch', 'numpy', *HOSTS}),
    'engine': ({'io', 'openmmlab', 'functional', 'layers', 'necks', 'backbones',
                'detectors', 'pretraining'}, {'torch', 'numpy', 'PIL', *HOSTS}),
    'commands': (None, None),
}


def imports(file: Path) -> set[tuple[int, str]]:
    """(level, dotted name) of what a file imports, inside functions, too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.level, node.module)} if node.module else {
                (node.level, alias.name) for alias in node.names}
    return found


def test_every_subpackage_has_its_place():
    folders = {file.parent.name for file in PACKAGE.glob('*/__init__.py')}
    assert folders == set(LAYERS)


@pytest.mark.parametrize('folder', LAYERS)
def test_imports_run_one_way(folder):
    below, others = LAYERS[folder]
    for file in (PACKAGE / folder).rglob('*.py'):
        depth = len(file.relative_to(PACKAGE).parts)
        for level, name in imports(file):
            top = name.split('.')[0]
            if level == 0 and top == 'fpt_plugin':  # a probe's own process
                assert folder == 'commands', (file, name)
            elif level == 0:
                assert others is None or top in others | sys.stdlib_module_names, (
                    file, name)
            elif level == depth and below is not None:
                assert top in below, (file, name)
            else:
                assert level <= depth, (file, name)


def test_files_stay_short():
    """A file says one thing and stays at about 400 lines."""
    long = {
        str(file): count
        for file in PACKAGE.rglob('*.py')
        if (count := len(file.read_text().splitlines())) > 450
    }
    assert not long
