"""Write a short config file: a base, and the settings that differ from it."""

from __future__ import annotations

import keyword
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from ...io.files import replacing

_STYLE = dict(
    based_on_style='pep8',
    split_before_expression_after_opening_paren=True)
# Keys that come first in a config, in this order.
_FIRST = ('custom_imports', 'model', 'load_from')
_DELETE = '_delete_'


def difference(old: Mapping, new: Mapping) -> dict:
    """Return the dict that mmengine must merge into ``old`` to get ``new``.

    Raises:
        ValueError: ``new`` lacks a top-level key of ``old``. A config cannot
            remove those of its base.
    """
    gone = [key for key in old if key not in new]
    if gone:
        raise ValueError('a config keeps the keys of its base, got a new one '
                         f'without {gone}')
    return _difference(old, new)


def _difference(old: Mapping, new: Mapping) -> dict:
    changed: dict = {}
    for key, value in new.items():
        if key not in old:
            changed[key] = value
        elif not _same(old[key], value):
            changed[key] = _replacement(old[key], value)
    return changed


def _replacement(old: object, new: object) -> object:
    if not isinstance(new, Mapping):
        return new
    if not isinstance(old, Mapping):
        return {_DELETE: True, **new}
    if any(key not in new for key in old):
        return {_DELETE: True, **new}
    return _difference(old, new)


def _same(a: object, b: object) -> bool:
    """Compare values and types: ``True`` is not 1, a list is not a tuple."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


def config_text(old: Config, new: Config, base: str | None) -> str:
    """Return the text of a config file with the content ``new``.

    Args:
        old: The base's content.
        new: The content.
        base: The base's name for ``_base_``; None: all of ``new`` is written.
    """
    lines = []
    content = _plain(new)
    if base is not None:
        lines.append(f'_base_ = {base!r}')
        content = difference(_plain(old), content)
    keys = [key for key in _FIRST if key in content]
    keys += [key for key in content if key not in keys]
    lines += [f'{key} = {_code(content[key])}' for key in keys]
    text, _ = FormatCode('\n'.join(lines) + '\n', style_config=_STYLE)
    return text


def _plain(cfg: Config) -> dict:
    """Convert a config to plain dicts, with the names of classes in lazy configs."""
    return _named(cfg.to_dict())


def _named(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _named(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_named, value))
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    return value


def _code(value: object) -> str:
    if isinstance(value, Mapping):
        names = all(isinstance(key, str) and key.isidentifier()
                    and not keyword.iskeyword(key) for key in value)
        # type comes before other arguments.
        keys = sorted(value, key=lambda key: (key != _DELETE, key != 'type'))
        if names:
            return 'dict(' + ', '.join(
                f'{key}={_code(value[key])}' for key in keys) + ')'
        return '{' + ', '.join(
            f'{key!r}: {_code(value[key])}' for key in keys) + '}'
    if isinstance(value, list):
        return '[' + ', '.join(map(_code, value)) + ']'
    if isinstance(value, tuple):
        comma = ',' if len(value) == 1 else ''
        return '(' + ', '.join(map(_code, value)) + comma + ')'
    return repr(value)


def base_name(config: str | Path, folder: str | Path) -> str | None:
    """Return the value of ``_base_`` for a new config in a folder.

    Args:
        config: The base: a path, or ``mmdet::`` and a file. A path becomes
            relative, unless there are symbolic links in it.
        folder: The folder of the new config.

    Returns:
        The name, or None for a config in mmengine's lazy style, which cannot
        be the base of a text config.
    """
    if '::' in str(config):
        return str(config)
    if Path(config).suffix == '.py' and Config._is_lazy_import(str(config)):
        return None
    relative = os.path.relpath(config, folder)
    # Behind a symbolic link ".." is ambiguous.
    if relative != os.path.relpath(os.path.realpath(config),
                                   os.path.realpath(folder)):
        return Path(config).absolute().as_posix()
    return Path(relative).as_posix()


def write_config(text: str, new: Config, out: str | Path) -> None:
    """Write a config file after a check that its text gives the config.

    Args:
        text: The result of :func:`config_text`.
        new: The config that it must give.
        out: The file.

    Raises:
        OSError: It cannot be written.
        ValueError: The text gives another config; nothing is written.
    """
    check_text(text, new, Path(out).parent)
    with replacing(out) as temporary:
        temporary.write_text(text)


def check_text(text: str, new: Config, folder: str | Path) -> None:
    """Check that a config's text, as a file in a folder, gives a config.

    Raises:
        OSError: The folder cannot be written to.
        ValueError: They differ; the message says where.
    """
    # In the folder itself, because the name of the base is relative to it.
    Path(folder).mkdir(parents=True, exist_ok=True)
    trial = tempfile.NamedTemporaryFile(
        mode='w', dir=folder, prefix='.graft_', suffix='.py', delete=False)
    try:
        with trial:
            trial.write(text)
        check_gives(Config.fromfile(trial.name), new)
    finally:
        Path(trial.name).unlink()


def check_gives(read: Config, new: Config) -> None:
    """Check that a config that was read is equal to another one.

    Raises:
        ValueError: They differ; the message says where.
    """
    where = _first_difference(_plain(read), _plain(new), '')
    if where is not None:
        raise ValueError(f'the written config differs from the graft at {where}')


def _first_difference(a: object, b: object, where: str) -> str | None:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            inside = f'{where}.{key}' if where else str(key)
            if key not in a or key not in b:
                return inside
            found = _first_difference(a[key], b[key], inside)
            if found is not None:
                return found
        return None
    return None if _same(a, b) else f'{where}: {a!r} and {b!r}'
