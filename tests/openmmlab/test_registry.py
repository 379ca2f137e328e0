"""Our registered names, and modules that are reloaded."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.registry import Registry

import fpt_plugin
from fpt_plugin.openmmlab.registry import register

RELOADS = """
import importlib, io, pkgutil, sys
import numpy, torch, fpt_plugin
for module in list(pkgutil.walk_packages(fpt_plugin.__path__, 'fpt_plugin.')):
    if not module.name.endswith('__main__'):
        importlib.import_module(module.name)
for _ in range(2):
    for name in [name for name in sys.modules if name.startswith('fpt_plugin')]:
        importlib.reload(sys.modules[name])
file = io.BytesIO()
torch.save(numpy.arange(3), file)
file.seek(0)
assert torch.load(file, weights_only=True).tolist() == [0, 1, 2]
from mmengine.registry import MODELS
assert MODELS.get('FPT') is sys.modules['fpt_plugin.necks.fpt'].FPT
# All of it anew, as some notebooks do it.
for name in [name for name in sys.modules if name.startswith('fpt_plugin')]:
    del sys.modules[name]
import fpt_plugin
neck = MODELS.build(dict(type='FPT', pyramid=None, in_channels=8, out_channels=8,
                         num_levels=2))
assert type(neck) is fpt_plugin.FPT
"""


def defined(registry, module):
    """A class that a module of this name defines and registers."""
    return register(registry)(type('Thing', (), dict(__module__=module)))


def test_a_reloaded_module_replaces_its_own_entries():
    registry = Registry('thing')
    first, second = defined(registry, 'ours'), defined(registry, 'ours')
    assert registry.get('Thing') is second is not first


def test_entries_of_others_are_never_replaced():
    registry = Registry('thing')
    first = defined(registry, 'theirs')
    with pytest.raises(KeyError, match='Thing is already registered'):
        defined(registry, 'ours')
    assert registry.get('Thing') is first


def test_functions_too():
    registry = Registry('thing')

    def policy():
        return SimpleNamespace()

    assert register(registry)(policy) is policy
    assert register(registry)(policy) is registry.get('policy')


def test_every_name_of_ours_is_registered_so():
    files = Path(fpt_plugin.__file__).parent.rglob('*.py')
    assert not [str(file) for file in files
                if '.register_module(' in file.read_text()
                and file.name != 'registry.py']


@pytest.mark.slow
def test_every_module_can_be_reloaded():
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', RELOADS],
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
