"""From which checkpoint a training goes on, and whether a checkpoint is whole."""

from __future__ import annotations

import glob
import pickle
import re
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from string import Formatter

from ..io.checkpoints import UnsafeFileError, peek, read_checkpoint
from ..openmmlab.models import is_pretrained

ZIP = b'PK\x03\x04'  # how torch.save's files begin since torch 1.6
CLOCK = '%Y%m%d_%H%M%S'  # as mmengine notes the time in its checkpoints


def check_checkpoint(path: str | Path) -> None:
    """Require a checkpoint to be what was saved.

    torch.load calls a file that was cut short an ``Invalid argument`` and reads
    one with other bytes in it as if nothing were wrong; the checksums in the
    file are not compared. Here they are, without reading the tensors.

    Args:
        path: A file of torch.save in either format. URLs, and the folders of
            other frameworks, are left to mmengine.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It was cut short or changed, or is no checkpoint.
    """
    if '://' in str(path):
        return
    path = Path(path).expanduser()
    if path.is_dir():
        return
    with path.open('rb') as file:
        begin = file.read(len(ZIP))
    if begin != ZIP:
        try:  # the old format has no checksums
            read_checkpoint(path)
        except UnsafeFileError:
            pass
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f'{path} was cut short: its end is missing ({path.stat().st_size} '
            'bytes are there). It was being written when something died, or '
            'copied in part')
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed is None:  # torch reads more of the archive than Python does
            peek(path)
    except pickle.UnpicklingError:
        return  # whole; whether to trust it is not asked here
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError,
            RuntimeError, ValueError) as error:
        reason = str(error).partition('. ')[0]
        raise ValueError(f'{path} is damaged ({reason})') from error
    if changed is not None:
        raise ValueError(f'{path} is damaged: the checksum of {changed} is not '
                         'that of what was saved')


def check_pretrained(model: object) -> None:
    """Check the files that the modules of a config begin with.

    Args:
        model: Settings of a model, or of a part of it. What
            ``init_cfg=dict(type='Pretrained', checkpoint=...)`` names is looked
            at if it is a file; others are left to mmengine.

    Raises:
        ValueError: As :func:`check_checkpoint`.
    """
    if isinstance(model, Mapping):
        path = model.get('checkpoint')
        if is_pretrained(model) and isinstance(path, str) \
                and Path(path).is_file():
            check_checkpoint(path)
        model = model.values()
    elif not isinstance(model, (list, tuple)):
        return
    for part in model:
        check_pretrained(part)


def newest_checkpoint(work_dir: str | Path, *hooks: Mapping) -> str | None:
    """The checkpoint to go on from: the newest one that is whole.

    That is the one which ``last_checkpoint`` names, as for mmengine, unless a
    later one was finished when the run died. Where it is missing or damaged,
    the newest other one is taken; nothing is deleted, and a warning names each
    file that is left out.

    Args:
        work_dir: Of the run that is to go on.
        hooks: The settings of its CheckpointHooks: where checkpoints are and
            how they are called.

    Returns:
        A path; None if nothing was saved yet.

    Raises:
        ValueError: ``last_checkpoint`` names one, but none is whole.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in named:
        return named
    target = Path(named) if named else None
    if target is not None and not target.exists():
        # Written as seen from another folder, or the run was moved.
        target = Path(work_dir, target.name)
    if target is not None and not target.exists():
        warnings.warn(f'{pointer} names {named}, which is not there',
                      stacklevel=2)
        target = None
    folders = {Path(work_dir), *([] if target is None else [target.parent])}
    since = pointer.stat().st_mtime_ns if pointer.is_file() else 0
    for path in _newest_first(target, _saved(folders, hooks), since):
        try:
            check_checkpoint(path)
        except (OSError, ValueError) as error:
            warnings.warn(f'left out: {error}', stacklevel=2)
        else:
            return str(path)
    if pointer.is_file():
        raise ValueError(
            f'{pointer} tells of {named or "a checkpoint"}, and neither it nor '
            'another one is there and whole: begin anew, or name another '
            'checkpoint to go on from')
    return None


def _saved(folders: Iterable[Path], hooks: Iterable[Mapping]) -> list[Path]:
    """What CheckpointHooks saved every so many epochs or iterations.

    The best one by a metric holds no optimizer: a training cannot go on there.
    Whether a folder, as several frameworks write it, is whole is told by
    ``last_checkpoint`` alone.
    """
    found: dict[Path, None] = {}
    for hook in hooks or [{}]:
        places = set(folders)
        if hook.get('out_dir') and '://' not in str(hook['out_dir']):
            places |= {Path(hook['out_dir'], folder.resolve().name)
                       for folder in folders}
        names = [hook.get('filename_tmpl')]
        if names == [None]:
            names = ['epoch_{}.pth', 'iter_{}.pth']
        for folder, name in product(places, names):
            parts = [(glob.escape(text), field)
                     for text, field, *_ in Formatter().parse(name)]
            pattern = ''.join(text + ('' if field is None else '*')
                              for text, field in parts)
            found.update((path, None) for path in folder.glob(pattern)
                         if not path.is_dir()
                         and _is_named(path.relative_to(folder), name))
    return list(found)


def _is_named(path: Path, template: str) -> bool:
    """Whether a template of a CheckpointHook gives this name for some step."""
    name = path.as_posix()
    numbers = re.findall(r'\d+', name) + re.findall(r'\d[\d,_]*\d', name)
    steps = {0, *(int(re.sub('[,_]', '', number)) for number in numbers)}
    return any(template.format(step) == name for step in steps)


def _newest_first(target: Path | None, saved: list[Path],
                  since: int) -> Iterator[Path]:
    """The later ones than ``last_checkpoint``, what it names, and the others."""
    others = [path for path in saved if target is None
              or path.resolve() != target.resolve()]
    if target is not None:
        # By both clocks: copies of files are all new, and whoever names an
        # old checkpoint there means it.
        age = _age(target)
        later = [path for path in others
                 if path.stat().st_mtime_ns > since and _age(path) > age]
        yield from sorted(later, key=_age, reverse=True)
        yield target
        others = [path for path in others if path not in later]
    yield from sorted(others, key=_age, reverse=True)


def _age(path: Path) -> tuple[str, int]:
    """When it was saved, by its own account if it can be read, and the step."""
    try:
        meta = peek(path)['meta']
        return str(meta['time']), int(meta['iter'])
    except Exception:  # damaged, of the old format, or not mmengine's
        clock = time.localtime(path.stat().st_mtime)
        return time.strftime(CLOCK, clock), 0
