"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Names of the temporary folders of this process. A process may have the number
# of one that was killed, in a container nearly always.
_OURS: set[str] = set()


def check_writable(out: str | Path,
                   *,
                   suffixes: Collection[str] = (),
                   refused: Mapping[str, str] = {},
                   read: Collection[object] = (),
                   force: bool = True,
                   flag: str = '--force',
                   name: str = 'out') -> None:
    """Require a name that can be written to without harm.

    Args:
        out: The file to write.
        suffixes: Endings that it may have; empty: any.
        refused: Endings that it must not have, and why.
        read: What the caller reads; only strings and paths are looked at.
        force: Whether a file that is there may be replaced.
        flag: What a user sets to replace it.
        name: The argument, for messages.

    Raises:
        FileExistsError: The file is there.
        IsADirectoryError: It is a folder.
        ValueError: It has another ending, or is one of the files that are read.
    """
    out = Path(out)
    if out.is_dir():
        raise IsADirectoryError(f'{name} must name the file to write, but {out} '
                                'is a folder')
    if suffixes and out.suffix not in suffixes:
        raise ValueError(
            f'{name} must end in {" or ".join(suffixes)}, got {out}')
    if out.suffix in refused:
        raise ValueError(f'{name} must not end in {out.suffix}, got {out}: '
                         f'{refused[out.suffix]}')
    if any(isinstance(path, (str, Path)) and _same_file(out, Path(path))
           for path in read):
        raise ValueError(f'{name} must name another file than those that are '
                         f'read, but {out} is read here')
    if out.exists() and not force:
        raise FileExistsError(f'{name} must name a new file, but {out} is there '
                              f'already: {flag} replaces it')


def _same_file(a: Path, b: Path) -> bool:
    """Whether two names, which may not exist yet, lead to one file."""
    return a.resolve() == b.resolve() or (
        a.exists() and b.exists() and a.samefile(b))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name, then rename it.

    The body gets a path that does not exist yet, in a hidden folder beside
    ``path``, and creates a file or a folder there. Only when it ends without
    an exception does the result take its final name; otherwise what was there
    stays as it was.

    Args:
        path: The final name. Its folder is made where it is missing.

    Yields:
        The temporary path; its name is that of ``path``.

    Raises:
        FileNotFoundError: The body created nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_after_the_dead(path)
    folder = Path(
        tempfile.mkdtemp(
            prefix=f'.{path.name}.{os.getpid()}.',
            suffix='.partial',
            dir=path.parent))
    _OURS.add(folder.name)
    try:
        temporary = folder / path.name
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f'nothing was written for {path}')
        # A folder cannot be renamed over another one: the old one steps
        # aside, and back again where the rename fails.
        old = folder / 'old'
        if path.is_dir() and not path.is_symlink():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _OURS.discard(folder.name)


def _clear_after_the_dead(path: Path) -> None:
    """Remove what killed processes left of ``path``, other writers' not.

    Where one died between the two renames of a folder, the old folder is put
    back.
    """
    pattern = re.compile(rf'\.{re.escape(path.name)}\.(\d+)\.\w{{8}}\.partial')
    for folder in list(path.parent.iterdir()):
        match = pattern.fullmatch(folder.name)
        if match is None or folder.name in _OURS or (
                int(match[1]) != os.getpid() and _alive(int(match[1]))):
            continue
        if (folder / 'old').exists() and not path.exists():
            os.replace(folder / 'old', path)
        shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content``, whole or not at all, and onto the disk.

    After a loss of power, too, there is the old file or the new one: a name
    that reaches the disk before the bytes would stand for an empty file.
    """
    path = Path(path)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if os.name == 'posix':  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` as indented JSON, whole or not at all.

    Raises:
        IsADirectoryError: ``path`` is a folder.
    """
    check_writable(path, name='the JSON file')
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n')


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
