"""The package as a whole: registered names, layers of imports, length of files."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import mmengine.registry as registry_module
import pytest

import fpt_plugin
from fpt_plugin.commands.doctor.probe import try_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'fpt_plugin'


def test_import_registers_all_names():
    registries = [registry.module_dict for registry in vars(registry_module).values()
                  if isinstance(registry, registry_module.Registry)]
    for name in {*fpt_plugin.__all__} - {'__version__'}:
        assert getattr(fpt_plugin, name) in [found.get(name) for found in registries]


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_no_name_exists_in_a_library(library):
    """The scope of the library is searched first: its class would be built."""
    names = try_names(library)['names']
    assert {*names, '__version__'} == {*fpt_plugin.__all__}


# For each subpackage the subpackages that it may import, and the other packages apart
# from the standard library; None: any. Below commands, mmdet and mmseg are used through
# the registry, never by import.
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
                    {'torch', 'numpy', 'cv2', *HOSTS}),  # mmcv needs cv2
    'pretraining': ({'functional', 'layers', 'necks', 'openmmlab',
                     'restoration'},
                    {'torch', 'numpy', *HOSTS}),
    'engine': ({'io', 'openmmlab', 'functional', 'layers', 'necks', 'backbones',
                'detectors', 'pretraining'}, {'torch', 'numpy', 'PIL', *HOSTS}),
    'commands': (None, None),
}


def imports(file: Path) -> set[tuple[int, str]]:
    """Return (level, dotted name) of all imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.level, node.module)} if node.module else {
                (node.level, alias.name) for alias in node.names}
    return found


def test_every_subpackage_has_a_layer():
    folders = {file.parent.name for file in PACKAGE.glob('*/__init__.py')}
    assert folders == set(LAYERS)


@pytest.mark.parametrize('folder', LAYERS)
def test_imports_run_one_way(folder):
    below, others = LAYERS[folder]
    for file in (PACKAGE / folder).rglob('*.py'):
        depth = len(file.relative_to(PACKAGE).parts)
        for level, name in imports(file):
            top = name.split('.')[0]
            if level == 0 and top == 'fpt_plugin':  # in another process
                assert folder == 'commands', (file, name)
            elif level == 0:
                assert others is None or top in others | sys.stdlib_module_names, (
                    file, name)
            elif level == depth and below is not None:
                assert top in below, (file, name)
            else:
                assert level <= depth, (file, name)


def test_files_are_short():
    """A file should have about 400 lines at most; 450 is the limit."""
    lengths = {str(file): len(file.read_text().splitlines())
               for file in PACKAGE.rglob('*.py')}
    assert not {file: length for file, length in lengths.items() if length > 450}
