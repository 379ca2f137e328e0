"""No source of the package runs what it reads, or opens a connection."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ('fpt_plugin', 'tools')
    for path in (ROOT / folder).rglob('*.py') if '.mim' not in path.parts)
# Modules that run what they read, write where an archive says, or use the network.
MODULES = {
    'cPickle', '_pickle', 'cloudpickle', 'dill', 'joblib', 'marshal',
    'shelve', 'yaml', 'tarfile', 'requests', 'socket', 'urllib.request',
    'http.client', 'ftplib', 'code', 'runpy'}
# Functions by their last name, of any object.
FUNCTIONS = {
    'load_checkpoint', '_load_checkpoint', 'load_url', 'CheckpointLoader',
    'load_state_dict_from_url', 'from_pretrained', 'urlopen', 'unpack_archive',
    'extractall', 'read_pickle', 'getoutput', 'getstatusoutput'}
# Functions by their full name.
WHOLE = {'eval', 'exec', 'compile', 'os.system', 'os.popen'}
# The only names of pickle that may be used.
ERRORS = {'UnpicklingError', 'PickleError'}
# These must be imported under their own names, and ``load`` only as an attribute.
NO_ALIAS = {'torch', 'torch.serialization', 'numpy', 'os', 'pickle'}
HAVE_LOAD = {'torch', 'torch.serialization', 'numpy', 'mmengine', 'mmengine.fileio'}


def unsafe(source: str) -> list[str]:
    """Return the lines of a source that could run or fetch something."""
    tree = ast.parse(source)
    errors = {id(node.value) for node in ast.walk(tree)
              if isinstance(node, ast.Attribute) and node.attr in ERRORS}
    return [f'{node.lineno}: {words}' for node in ast.walk(tree)
            if id(node) not in errors for words in _unsafe(node)]


def _unsafe(node: ast.AST) -> Iterator[str]:
    names = []
    if isinstance(node, ast.Name) and node.id == 'pickle':
        yield 'more of pickle than its errors'
    elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        if any(alias.asname not in (None, 'np') and alias.name in NO_ALIAS
               for alias in node.names):
            yield 'import under another name'
    elif isinstance(node, ast.ImportFrom) and not node.level:
        imported = {alias.name for alias in node.names}
        names = [node.module, *(f'{node.module}.{name}' for name in imported)]
        if node.module == 'pickle' and not imported <= ERRORS:
            yield 'more of pickle than its errors'
        if node.module in HAVE_LOAD and 'load' in imported:
            yield 'import of load'
    elif isinstance(node, ast.Call):
        yield from _unsafe_call(node)
    for name in names:
        parts = name.split('.')
        if MODULES & {'.'.join(parts[:i + 1]) for i in range(len(parts))} \
                or parts[-1] in FUNCTIONS or name in WHOLE:
            yield f'import of {name}'


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    last = name.rpartition('.')[2]
    given = {word.arg: getattr(word.value, 'value', ...) for word in node.keywords}
    if name in WHOLE or last in FUNCTIONS:
        yield name
    if name in ('torch.load', 'torch.serialization.load') \
            and given.get('weights_only') is not True:
        yield f'{name} without weights_only'
    if name in ('np.load', 'numpy.load') and given.get('allow_pickle') is not False:
        yield f'{name} without allow_pickle=False'
    if name.startswith('mmengine.') and last == 'load':
        yield name
    if given.get('shell', False) is not False:
        yield f'{name} with a shell'


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_is_unsafe(path):
    assert unsafe(path.read_text()) == []


def test_sources_are_those_of_the_package():
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
def test_unsafe_sources_are_found(source):
    assert unsafe(source)


@pytest.mark.parametrize('source', [
    'torch.load(path, weights_only=True)', 'np.load(path, allow_pickle=False)',
    'model.eval()', 're.compile(pattern)', 'import numpy as np',
    'subprocess.run(command, shell=False)', 'json.loads(text)',
    'from urllib.parse import urlparse', 'from pickle import UnpicklingError',
    'import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass',
])
def test_safe_sources_pass(source):
    assert unsafe(source) == []
