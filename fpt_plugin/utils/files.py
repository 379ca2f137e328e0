"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name, then rename it.

    The body gets a path beside ``path`` that does not exist yet and creates a
    file or a folder there. Only when it ends without an exception does the
    result take its final name; otherwise what was there stays as it was.

    Args:
        path: The final name. Its folder is made where it is missing.

    Yields:
        The temporary path, with the suffix of ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An interrupted process leaves its folder behind; the next one clears it.
    for stale in path.parent.glob(f'.{path.name}.*.partial'):
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(
        tempfile.mkdtemp(
            prefix=f'.{path.name}.', suffix='.partial', dir=path.parent))
    try:
        temporary = folder / path.name
        yield temporary
        if path.is_dir() and not path.is_symlink():
            os.replace(path, folder / f'{path.name}.old')
        os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n')
