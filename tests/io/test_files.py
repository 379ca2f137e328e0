"""Files and folders are there whole or not at all."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fpt_plugin.io import files
from fpt_plugin.io.files import check_writable, replacing, write_bytes, write_json


def names(folder):
    """Everything in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def no_space(*_args, **_kwargs):
    """What the system says when the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def leave_partial(path):
    """What a killed process leaves behind: a partial folder of ``path``."""
    with replacing(path) as temporary:
        temporary.write_text('half')
        # A killed process never gets to clean up: keep a copy of its traces,
        # under the number of a process that is no more.
        stale = temporary.parent
        dead = subprocess.Popen([sys.executable, '-c', ''])
        dead.wait()
        left = stale.name.replace(f'.{os.getpid()}.', f'.{dead.pid}.')
        kept = stale.rename(stale.with_name(left))
        stale.mkdir()
        (stale / path.name).write_text('whole')
    return kept


# ------------------------------------------------------------------ whole


def test_file_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / 'weights.pth'
    with replacing(path) as temporary:
        temporary.write_text('new')
        assert not path.exists()
    assert path.read_text() == 'new'
    assert names(tmp_path) == ['weights.pth']


def test_the_temporary_path_keeps_name_and_suffix(tmp_path):
    # Writers such as cv2.imwrite choose the format by the suffix.
    with replacing(tmp_path / 'map.tar.png') as temporary:
        assert temporary.name == 'map.tar.png'
        assert not temporary.exists()
        # A rename is only atomic within one file system.
        assert tmp_path in temporary.parents
        temporary.touch()


def test_missing_parents_are_made(tmp_path):
    path = tmp_path / 'a' / 'b' / 'c.txt'
    with replacing(path) as temporary:
        temporary.write_text('x')
    assert path.read_text() == 'x'


def test_a_string_is_a_path_too(tmp_path):
    with replacing(str(tmp_path / 'c.txt')) as temporary:
        temporary.write_text('x')
    assert (tmp_path / 'c.txt').read_text() == 'x'


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with replacing('c.txt') as temporary:
        temporary.write_text('x')
    assert names(tmp_path) == ['c.txt']


def test_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / 'c.txt'
    path.write_text('old')
    with replacing(path) as temporary:
        temporary.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'
    assert names(tmp_path) == ['c.txt']


def test_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / 'data'
    path.mkdir()
    (path / 'old').touch()
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / 'new').touch()
        assert names(path) == ['old']
    assert names(path) == ['new']
    assert names(tmp_path) == ['data']


def test_a_file_replaces_a_folder(tmp_path):
    path = tmp_path / 'data'
    path.mkdir()
    (path / 'old').touch()
    with replacing(path) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'new'


def test_others_may_read_what_was_written(tmp_path):
    """The private mode of the temporary folder is not handed on."""
    (tmp_path / 'plain').mkdir()
    with replacing(tmp_path / 'data') as temporary:
        temporary.mkdir()
    assert stat.S_IMODE((tmp_path / 'data').stat().st_mode) == stat.S_IMODE(
        (tmp_path / 'plain').stat().st_mode)


# ------------------------------------------------------------- not at all


@pytest.mark.parametrize('error', [
    ValueError('wrong'), KeyboardInterrupt(), SystemExit(1),
    OSError(errno.ENOSPC, 'No space left on device')
])
@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_an_exception_leaves_nothing(tmp_path, error, kind):
    path = tmp_path / 'data'
    with pytest.raises(type(error)) as caught, replacing(path) as temporary:
        if kind == 'folder':
            temporary.mkdir()
            temporary = temporary / 'half.txt'
        temporary.write_text('half')
        raise error
    assert caught.value is error
    assert names(tmp_path) == []


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_file(tmp_path, error):
    path = tmp_path / 'c.txt'
    path.write_text('old')
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text('half')
        raise error
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['c.txt']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_folder(tmp_path, error):
    path = tmp_path / 'data'
    path.mkdir()
    (path / 'old').touch()
    with pytest.raises(error), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / 'half').touch()
        raise error
    assert names(path) == ['old']
    assert names(tmp_path) == ['data']


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_body_that_writes_nothing_keeps_the_old(tmp_path, kind):
    path = tmp_path / 'data'
    if kind == 'file':
        path.write_text('old')
    else:
        path.mkdir()
        (path / 'old').touch()
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert names(tmp_path) == ['data']
    if kind == 'file':
        assert path.read_text() == 'old'
    else:
        assert names(path) == ['old']


def test_a_rename_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / 'data'
    path.mkdir()
    (path / 'old').touch()
    rename = os.replace

    def replace(source, target):
        # Only the last step fails: the new folder cannot take its name.
        if Path(target) == path and Path(source).name == path.name:
            no_space()
        rename(source, target)

    monkeypatch.setattr(files.os, 'replace', replace)
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ['data']
    assert names(path) == ['old']


# ------------------------------------------------------ killed processes


def test_what_a_killed_process_left_is_cleared(tmp_path):
    path = tmp_path / 'c.txt'
    stale = leave_partial(path)
    assert names(tmp_path) == [stale.name, 'c.txt']
    with replacing(path) as temporary:
        assert not stale.exists()
        temporary.write_text('new')
    assert names(tmp_path) == ['c.txt']
    assert path.read_text() == 'new'


def test_it_is_cleared_before_a_failing_attempt_too(tmp_path):
    path = tmp_path / 'c.txt'
    leave_partial(path)
    with pytest.raises(ValueError), replacing(path):
        raise ValueError
    assert names(tmp_path) == ['c.txt']
    assert path.read_text() == 'whole'


def test_stale_folders_of_names_with_brackets_are_cleared(tmp_path):
    """Brackets mean a choice of characters to glob, but not in a name."""
    path = tmp_path / 'results[1].json'
    leave_partial(path)
    with replacing(path) as temporary:
        temporary.write_text('new')
    assert names(tmp_path) == ['results[1].json']


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    """What a living process has in the making is not cleared."""
    path = tmp_path / 'c.txt'
    with replacing(path) as first:
        first.write_text('first')
        with replacing(path) as second:
            second.write_text('second')
    assert path.read_text() == 'first'


def test_a_folder_that_stepped_aside_comes_back(tmp_path):
    """Killed between the two renames: the old folder is not lost."""
    path = tmp_path / 'data'
    stale = leave_partial(path)
    path.unlink()
    (stale / 'old').mkdir()
    (stale / 'old' / 'kept').touch()
    with pytest.raises(ValueError), replacing(path):
        raise ValueError
    assert names(tmp_path) == ['data'] and names(path) == ['kept']


@pytest.mark.parametrize('other', ['c.txt.bak', 'b.txt', 'c.t'])
def test_other_files_in_the_making_are_left_alone(tmp_path, other):
    with replacing(tmp_path / other) as outer:
        outer.write_text('outer')
        with replacing(tmp_path / 'c.txt') as inner:
            inner.write_text('inner')
    assert names(tmp_path) == sorted([other, 'c.txt'])
    assert (tmp_path / other).read_text() == 'outer'


# -------------------------------------------------------------------- JSON


def test_json_is_readable_and_ends_with_a_line_feed(tmp_path):
    path = tmp_path / 'a' / 'c.json'
    content = {'bbox_mAP': 0.5, 'names': ['tree'], 'none': None}
    write_json(path, content)
    text = path.read_text()
    assert json.loads(text) == content
    assert text.endswith('}\n')
    assert len(text.splitlines()) > 3  # indented, for readers


def test_json_of_an_unknown_type_keeps_the_old(tmp_path):
    path = tmp_path / 'c.json'
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {'x': object()})
    assert json.loads(path.read_text()) == [1]
    assert names(tmp_path) == ['c.json']


def test_json_on_a_full_disk_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / 'c.json'
    write_json(path, [1])
    write = Path.write_text

    def half(self, text, *args, **kwargs):
        write(self, text[:len(text) // 2], *args, **kwargs)
        no_space()

    monkeypatch.setattr(Path, 'write_text', half)
    with pytest.raises(OSError) as caught:
        write_json(path, [2, 3, 4])
    assert caught.value.errno == errno.ENOSPC
    assert json.loads(path.read_text()) == [1]
    assert names(tmp_path) == ['c.json']


def test_bytes_replace_a_file(tmp_path):
    for content in (b'old', b'new'):
        write_bytes(tmp_path / 'a' / 'b.bin', content)
        assert (tmp_path / 'a' / 'b.bin').read_bytes() == content
    assert names(tmp_path / 'a') == ['b.bin']


def test_bytes_that_do_not_reach_the_disk(tmp_path, monkeypatch):
    write_bytes(tmp_path / 'b.bin', b'old')
    monkeypatch.setattr(os, 'fsync', no_space)
    with pytest.raises(OSError, match='No space'):
        write_bytes(tmp_path / 'b.bin', b'new')
    assert names(tmp_path) == ['b.bin']
    assert (tmp_path / 'b.bin').read_bytes() == b'old'


def test_a_killed_process_of_the_same_number(tmp_path):
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


# ------------------------------------------------------------- names to write to


def test_what_is_read_is_not_written_to(tmp_path):
    source = tmp_path / 'in.pth'
    source.touch()
    (tmp_path / 'link.pth').symlink_to(source)
    os.link(source, tmp_path / 'hard.pth')
    for name in ('in.pth', 'link.pth', 'hard.pth', 'a/../in.pth'):
        with pytest.raises(ValueError, match='must name another file'):
            check_writable(tmp_path / name, read=[None, 'mmdet::a.py', source])
    check_writable(tmp_path / 'out.pth', read=[source], force=False)


def test_names_that_cannot_be_written_to(tmp_path):
    out = tmp_path / 'out.pth'
    with pytest.raises(IsADirectoryError, match='--json must name the file'):
        check_writable(tmp_path, suffixes=['.json'], name='--json')
    with pytest.raises(ValueError, match=r'out must end in \.a or \.b, got .*pth'):
        check_writable(out, suffixes=['.a', '.b'])
    with pytest.raises(ValueError, match=r'must not end in \.pth, .*: too old'):
        check_writable(out, refused={'.pth': 'too old'})
    check_writable(out, suffixes=['.pth'], refused={'.a': ''}, force=False)
    out.touch()
    check_writable(out)
    with pytest.raises(FileExistsError, match='already: --fresh replaces it'):
        check_writable(out, force=False, flag='--fresh')


def test_a_file_takes_no_folders_place(tmp_path):
    folder = tmp_path / 'precious'
    folder.mkdir()
    (folder / 'data').write_text('keep')
    with pytest.raises(IsADirectoryError, match='precious '):
        write_json(folder, {})
    assert (folder / 'data').read_text() == 'keep'
    assert [path.name for path in tmp_path.iterdir()] == ['precious']
