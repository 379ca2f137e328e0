"""The package as a whole: what it imports, exports and installs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fpt_plugin

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
    from mmengine.registry import HOOKS, MODELS
    for name in fpt_plugin.__all__:
        if name != '__version__':
            registry = HOOKS if name.endswith('Hook') else MODELS
            assert registry.module_dict[name] is getattr(fpt_plugin, name)


@pytest.mark.parametrize('folder, allowed', [
    ('functional', {'torch'}),
    ('layers', {'torch', 'mmengine', 'mmcv'}),
    ('necks', {'torch', 'mmengine', 'mmcv'}),
    ('backbones', {'torch', 'mmengine', 'mmcv'}),
    ('detectors', {'torch', 'mmengine'}),
    ('engine', {'torch', 'mmengine', 'collections'}),
])
def test_imports_run_one_way(folder, allowed):
    """Hosts are reached through the registry, never by import."""
    below = {
        'functional': (),
        'layers': ('functional', ),
        'necks': ('functional', 'layers', 'compat'),
        'backbones': ('functional', 'layers', 'compat'),
        'detectors': ('functional', 'layers', 'necks', 'compat'),
        # How files are written needs nothing of what is built.
        'engine': ('layers', 'necks', 'detectors', 'compat', 'utils.files')
    }[folder]
    for file in (PACKAGE / folder).glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.ImportFrom) and node.level == 2:
                assert {node.module, node.module.split('.')[0]} & {*below}, file
                continue
            else:
                continue
            for name in names:
                top = name.split('.')[0]
                assert top in allowed | sys.stdlib_module_names, (file, name)


def test_files_stay_short():
    """A file says one thing and stays under about 400 lines."""
    long = {
        str(file): count
        for file in PACKAGE.rglob('*.py')
        if (count := len(file.read_text().splitlines())) > 420
    }
    assert not long


def test_the_readmes_layers_run():
    """As they stand, each block in a process of its own."""
    readme = (PACKAGE.parent / 'README.md').read_text()
    section = readme[readme.index('## Put it into my project'):]
    section = section[:section.index('\n### ')]
    blocks = re.findall(r'^```python\n(.*?)^```$', section, re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        result = subprocess.run([sys.executable, '-W', 'ignore', '-c', block],
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('[(1, 128, 64, 64), (1, 128, 32, 32)')
