"""Write files and folders atomically."""

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

# Names of the temporary folders that this process uses. Its process ID may be that
# of a killed process, which is common in containers.
_ACTIVE: set[str] = set()


def check_writable(out: str | Path,
                   *,
                   suffixes: Collection[str] = (),
                   refused: Mapping[str, str] = {},
                   read: Collection[object] = (),
                   force: bool = True,
                   flag: str = '--force',
                   name: str = 'out') -> None:
    """Check that a file can be written without overwriting anything needed.

    Args:
        out: The file to write.
        suffixes: Allowed suffixes; empty: any.
        refused: Forbidden suffixes, and why.
        read: Files that the caller reads; other types than strings and paths are
            ignored.
        force: Whether an existing file may be replaced.
        flag: The user's option to replace it, for messages.
        name: Name of the argument, for messages.

    Raises:
        FileExistsError: The file exists and ``force`` is False.
        IsADirectoryError: It is a folder.
        ValueError: Its suffix is not allowed, or the caller reads the file.
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
        raise ValueError(f'{name} must name another file than the input files, but '
                         f'{out} is read here')
    if out.exists() and not force:
        raise FileExistsError(f'{name} must name a new file, but {out} exists '
                              f'already: {flag} replaces it')


def _same_file(a: Path, b: Path) -> bool:
    """Return whether two paths, which need not exist, are the same file."""
    return a.resolve() == b.resolve() or (
        a.exists() and b.exists() and a.samefile(b))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name, then rename it.

    The body of the ``with`` statement creates a file or folder at the temporary
    path, in a hidden folder beside ``path``. It is renamed only if the body ends
    without an exception; otherwise an existing ``path`` is not changed.

    Args:
        path: The final name. Its parent folder is created if it is missing.

    Yields:
        The temporary path, which does not exist yet; its name is that of
        ``path``.

    Raises:
        FileNotFoundError: The body created nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    folder = Path(
        tempfile.mkdtemp(
            prefix=f'.{path.name}.{os.getpid()}.',
            suffix='.partial',
            dir=path.parent))
    _ACTIVE.add(folder.name)
    try:
        temporary = folder / path.name
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f'nothing was written for {path}')
        # A folder cannot be renamed over another one. Move the old one away
        # first, and back if the rename fails.
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
        _ACTIVE.discard(folder.name)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary folders that killed processes left beside ``path``.

    Those of running processes are kept. If a process was killed between the two
    renames of a folder, the old folder is restored.
    """
    pattern = re.compile(rf'\.{re.escape(path.name)}\.(\d+)\.\w{{8}}\.partial')
    for folder in list(path.parent.iterdir()):
        match = pattern.fullmatch(folder.name)
        if match is None or folder.name in _ACTIVE or (
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
    """Write ``content`` atomically and flush it to the disk.

    Without the flush, a power failure could leave an empty file under the final
    name, because the name can reach the disk before the content.
    """
    path = Path(path)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if os.name == 'posix':  # other systems cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` as indented JSON, atomically.

    Raises:
        IsADirectoryError: ``path`` is a folder.
    """
    check_writable(path, name='the JSON file')
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n')


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
