"""Registration of classes, also by reloaded modules."""

import subprocess
import sys
from inspect import isclass
from pathlib import Path

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
# Some notebooks remove and import all modules again.
for name in [name for name in sys.modules if name.startswith('fpt_plugin')]:
    del sys.modules[name]
import fpt_plugin
neck = MODELS.build(dict(type='FPT', pyramid=None, in_channels=8, out_channels=8,
                         num_levels=2))
assert type(neck) is fpt_plugin.FPT
"""


def test_only_a_modules_own_entries_are_replaced():
    registry = Registry('thing')

    def defined(module):
        """Register a class that a module defines."""
        return register(registry)(type('Thing', (), dict(__module__=module)))

    first, second = defined('ours'), defined('ours')
    assert registry.get('Thing') is second is not first
    with pytest.raises(KeyError, match='Thing is already registered'):
        defined('theirs')
    assert registry.get('Thing') is second


def test_functions():
    registry = Registry('thing')
    for _ in range(2):
        assert register(registry)(isclass) is registry.get('isclass')


def test_every_class_of_the_package_is_registered_with_it():
    files = Path(fpt_plugin.__file__).parent.rglob('*.py')
    assert not [str(file) for file in files
                if '.register_module(' in file.read_text()
                and file.name != 'registry.py']


@pytest.mark.slow
def test_every_module_can_be_reloaded():
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', RELOADS],
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
