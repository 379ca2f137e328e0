"""Files and folders are written atomically."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.folders import names

from fpt_plugin.io import files
from fpt_plugin.io.files import check_writable, replacing, write_bytes, write_json


def make(path, kind):
    """Create a file or a folder with the content 'old'."""
    if kind == 'folder':
        path.mkdir()
        (path / 'old').touch()
    elif kind == 'file':
        path.write_text('old')


def content_of(path):
    """Return the text of a file, the names in a folder, or None."""
    if path.is_dir():
        return names(path)
    return path.read_text() if path.exists() else None


def no_space(*_args, **_kwargs):
    """Raise the system's error for a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------ success


@pytest.mark.parametrize('old, new', [
    (None, 'file'), ('file', 'file'), ('folder', 'file'), (None, 'folder'),
    ('folder', 'folder')])
def test_the_result_appears_at_the_end(tmp_path, old, new):
    path = tmp_path / 'data'
    make(path, old)
    before = content_of(path)
    with replacing(path) as temporary:
        if new == 'folder':
            temporary.mkdir()
            (temporary / 'new').touch()
        else:
            temporary.write_text('new')
        assert content_of(path) == before
    assert content_of(path) == (['new'] if new == 'folder' else 'new')
    assert names(tmp_path) == ['data']


def test_kinds_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / 'a' / 'b' / 'map.tar.png', str(tmp_path / 'c.txt'), 'd'):
        with replacing(path) as temporary:
            # Writers such as cv2.imwrite choose the format by the suffix.
            assert temporary.name == Path(path).name
            assert not temporary.exists()
            # A rename is only atomic within one file system.
            assert Path(path).absolute().parent in temporary.absolute().parents
            temporary.write_text('x')
        assert Path(path).read_text() == 'x'
    assert names(tmp_path) == ['a', 'c.txt', 'd']


def test_new_folders_have_the_usual_permissions(tmp_path):
    """The temporary folder is private."""
    (tmp_path / 'plain').mkdir()
    with replacing(tmp_path / 'data') as temporary:
        temporary.mkdir()
    assert stat.S_IMODE((tmp_path / 'data').stat().st_mode) == stat.S_IMODE(
        (tmp_path / 'plain').stat().st_mode)


# ------------------------------------------------------------------ failure


@pytest.mark.parametrize('error', [
    ValueError('wrong'), KeyboardInterrupt(), SystemExit(1),
    OSError(errno.ENOSPC, 'No space left on device')
])
@pytest.mark.parametrize('new', ['file', 'folder'])
@pytest.mark.parametrize('old', [None, 'file', 'folder'])
def test_an_exception_keeps_the_old(tmp_path, error, new, old):
    path = tmp_path / 'data'
    make(path, old)
    before = content_of(path)
    with pytest.raises(type(error)) as caught, replacing(path) as temporary:
        if new == 'folder':
            temporary.mkdir()
            temporary = temporary / 'half.txt'
        temporary.write_text('half')
        raise error
    assert caught.value is error
    assert content_of(path) == before
    assert names(tmp_path) == (['data'] if old else [])


@pytest.mark.parametrize('old', ['file', 'folder'])
def test_a_body_that_writes_nothing_keeps_the_old(tmp_path, old):
    path = tmp_path / 'data'
    make(path, old)
    before = content_of(path)
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert names(tmp_path) == ['data'] and content_of(path) == before


def test_a_rename_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / 'data'
    make(path, 'folder')
    rename = os.replace

    def replace(source, target):
        # Only the last step fails: the new folder does not get its name.
        if Path(target) == path and Path(source).name == path.name:
            no_space()
        rename(source, target)

    monkeypatch.setattr(files.os, 'replace', replace)
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ['data'] and names(path) == ['old']


# ------------------------------------------------------ killed processes


def leave_partial(path):
    """Write a file, and leave a temporary folder as from a killed process."""
    with replacing(path) as temporary:
        temporary.write_text('half')
        # Move the temporary folder, so that it is not removed, to a name with the
        # ID of a process that has ended.
        stale = temporary.parent
        dead = subprocess.Popen([sys.executable, '-c', ''])
        dead.wait()
        left = stale.name.replace(f'.{os.getpid()}.', f'.{dead.pid}.')
        kept = stale.rename(stale.with_name(left))
        stale.mkdir()
        (stale / path.name).write_text('whole')
    assert names(path.parent) == [kept.name, path.name]
    return kept


@pytest.mark.parametrize('fails', [False, True])
# Brackets have a meaning in glob patterns.
@pytest.mark.parametrize('name', ['c.txt', 'results[1].json'])
def test_leftovers_of_a_killed_process_are_removed(tmp_path, name, fails):
    path = tmp_path / name
    stale = leave_partial(path)
    try:
        with replacing(path) as temporary:
            assert not stale.exists()
            temporary.write_text('new')
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert names(tmp_path) == [name]
    assert path.read_text() == ('whole' if fails else 'new')


def test_leftovers_with_the_id_of_this_process(tmp_path):
    """In a container every training may be process 1."""
    left = leave_partial(tmp_path / 'file')
    same = left.rename(tmp_path / f'.file.{os.getpid()}.abcdefgh.partial')
    with replacing(tmp_path / 'file') as temporary:
        assert not same.exists()
        with replacing(tmp_path / 'file') as inner:
            assert temporary.parent.exists()
            inner.write_text('inner')
        temporary.write_text('outer')
    assert names(tmp_path) == ['file']


def test_a_process_killed_between_two_renames(tmp_path):
    """The old folder is restored."""
    path = tmp_path / 'data'
    stale = leave_partial(path)
    path.unlink()
    make(stale / 'old', 'folder')
    with pytest.raises(ValueError), replacing(path):
        raise ValueError
    assert names(tmp_path) == ['data'] and names(path) == ['old']


@pytest.mark.parametrize('other', ['c.txt', 'c.txt.bak', 'b.txt', 'c.t'])
def test_temporary_files_of_other_writers_are_kept(tmp_path, other):
    with replacing(tmp_path / other) as outer:
        outer.write_text('outer')
        with replacing(tmp_path / 'c.txt') as inner:
            inner.write_text('inner')
    assert names(tmp_path) == sorted({other, 'c.txt'})
    assert (tmp_path / other).read_text() == 'outer'


# ---------------------------------------------------------- JSON and bytes


def test_json_is_indented(tmp_path):
    path = tmp_path / 'a' / 'c.json'
    content = {'bbox_mAP': 0.5, 'names': ['tree'], 'none': None}
    write_json(path, content)
    text = path.read_text()
    assert json.loads(text) == content
    assert text.endswith('}\n') and len(text.splitlines()) > 3


def test_json_that_cannot_be_written_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / 'c.json'
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {'x': object()})
    write = Path.write_text

    def half(self, text, *args, **kwargs):
        write(self, text[:len(text) // 2], *args, **kwargs)
        no_space()

    monkeypatch.setattr(Path, 'write_text', half)
    with pytest.raises(OSError, match='No space'):
        write_json(path, [2, 3, 4])
    assert json.loads(path.read_text()) == [1]
    assert names(tmp_path) == ['c.json']


def test_bytes(tmp_path, monkeypatch):
    path = tmp_path / 'a' / 'b.bin'
    for content in (b'old', b'new'):
        write_bytes(path, content)
        assert path.read_bytes() == content
    monkeypatch.setattr(os, 'fsync', no_space)
    with pytest.raises(OSError, match='No space'):
        write_bytes(path, b'newer')
    assert names(path.parent) == ['b.bin'] and path.read_bytes() == b'new'


# ------------------------------------------------------------ check_writable


def test_input_files_are_not_overwritten(tmp_path):
    source = tmp_path / 'in.pth'
    source.touch()
    (tmp_path / 'link.pth').symlink_to(source)
    os.link(source, tmp_path / 'hard.pth')
    for name in ('in.pth', 'link.pth', 'hard.pth', 'a/../in.pth'):
        with pytest.raises(ValueError, match='out must name another file'):
            check_writable(tmp_path / name, read=[None, 'mmdet::a.py', source])
    check_writable(tmp_path / 'out.pth', read=[source], force=False)


def test_names_that_cannot_be_written(tmp_path):
    out = tmp_path / 'out.pth'
    with pytest.raises(IsADirectoryError, match='--json must name the file'):
        check_writable(tmp_path, suffixes=['.json'], name='--json')
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path, {})
    with pytest.raises(ValueError, match=r'out must end in \.a or \.b, got .*pth'):
        check_writable(out, suffixes=['.a', '.b'])
    with pytest.raises(ValueError, match=r'must not end in \.pth, .*: too old'):
        check_writable(out, refused={'.pth': 'too old'})
    check_writable(out, suffixes=['.pth'], refused={'.a': ''}, force=False)
    out.touch()
    check_writable(out)
    with pytest.raises(FileExistsError, match='already: --fresh replaces it'):
        check_writable(out, force=False, flag='--fresh')
