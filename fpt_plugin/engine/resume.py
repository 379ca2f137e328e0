"""Check the integrity of checkpoints and find the newest one to resume from."""

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

ZIP_SIGNATURE = b'PK\x03\x04'  # first bytes of torch.save's files since torch 1.6
TIME_FORMAT = '%Y%m%d_%H%M%S'  # of the time in mmengine's checkpoints


def check_checkpoint(path: str | Path) -> None:
    """Require a checkpoint file to be complete and unchanged.

    torch.load reports ``Invalid argument`` for a truncated file and reads a file
    with changed bytes without an error, because it does not compare checksums.
    This function compares them without loading the tensors.

    Args:
        path: A file of torch.save in either format. URLs, and folders of other
            frameworks, are not checked.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It was truncated or changed, or is no checkpoint.
    """
    if '://' in str(path):
        return
    path = Path(path).expanduser()
    if path.is_dir():
        return
    with path.open('rb') as file:
        begin = file.read(len(ZIP_SIGNATURE))
    if begin != ZIP_SIGNATURE:
        try:  # the old format has no checksums
            read_checkpoint(path)
        except UnsafeFileError:
            pass
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f'{path} was cut short: its end is missing ({path.stat().st_size} '
            'bytes are there). Writing or copying it was interrupted')
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed is None:  # torch reads parts of the archive that zipfile skips
            peek(path)
    except pickle.UnpicklingError:
        return  # complete; this function does not check whether it is safe
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError,
            RuntimeError, ValueError) as error:
        reason = str(error).partition('. ')[0]
        raise ValueError(f'{path} is damaged ({reason})') from error
    if changed is not None:
        raise ValueError(f'{path} is damaged: the checksum of {changed} differs '
                         'from the saved one')


def check_pretrained(model: object) -> None:
    """Check the pretrained weights of a config that are local files.

    Args:
        model: Config of a model or a part of it, with
            ``init_cfg=dict(type='Pretrained', checkpoint=...)``.

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
    """Return the newest complete checkpoint of a run.

    As in mmengine, this is the one in ``last_checkpoint``, unless the run saved
    a later one before it was killed. If it is missing or damaged, the newest
    other one is used. Nothing is deleted; a warning names each skipped file.

    Args:
        work_dir: Folder of the run.
        hooks: Configs of its CheckpointHooks, for folders and file names.

    Returns:
        A path; None if nothing was saved yet.

    Raises:
        ValueError: There is a ``last_checkpoint``, but no complete checkpoint.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in named:
        return named
    target = Path(named) if named else None
    if target is not None and not target.exists():
        # The path is relative to another folder, or the run was moved.
        target = Path(work_dir, target.name)
    if target is not None and not target.exists():
        warnings.warn(f'{pointer} names {named}, which is not there',
                      stacklevel=2)
        target = None
    folders = {Path(work_dir), *([] if target is None else [target.parent])}
    since = pointer.stat().st_mtime_ns if pointer.is_file() else 0
    for path in _newest_first(target, _find_saved(folders, hooks), since):
        try:
            check_checkpoint(path)
        except (OSError, ValueError) as error:
            warnings.warn(f'left out: {error}', stacklevel=2)
        else:
            return str(path)
    if pointer.is_file():
        raise ValueError(
            f'{pointer} names {named or "no checkpoint"}, and there is no '
            'complete checkpoint: start again, or name another checkpoint to '
            'resume from')
    return None


def _find_saved(folders: Iterable[Path], hooks: Iterable[Mapping]) -> list[Path]:
    """Find the checkpoints that CheckpointHooks saved at regular intervals.

    The best checkpoint by a metric has no optimizer, so a training cannot resume
    from it. Checkpoints that are folders (of other frameworks) are not listed:
    only ``last_checkpoint`` shows whether one is complete.
    """
    found: dict[Path, None] = {}
    for hook in hooks or [{}]:
        searched = set(folders)
        if hook.get('out_dir') and '://' not in str(hook['out_dir']):
            searched |= {Path(hook['out_dir'], folder.resolve().name)
                         for folder in folders}
        names = [hook.get('filename_tmpl')]
        if names == [None]:
            names = ['epoch_{}.pth', 'iter_{}.pth']
        for folder, name in product(searched, names):
            parts = [(glob.escape(text), field)
                     for text, field, *_ in Formatter().parse(name)]
            pattern = ''.join(text + ('' if field is None else '*')
                              for text, field in parts)
            found.update((path, None) for path in folder.glob(pattern)
                         if not path.is_dir()
                         and _matches(path.relative_to(folder), name))
    return list(found)


def _matches(path: Path, template: str) -> bool:
    """Return whether ``template.format(step)`` is this name for some step."""
    name = path.as_posix()
    numbers = re.findall(r'\d+', name) + re.findall(r'\d[\d,_]*\d', name)
    steps = {0, *(int(re.sub('[,_]', '', number)) for number in numbers)}
    return any(template.format(step) == name for step in steps)


def _newest_first(target: Path | None, saved: list[Path],
                  since: int) -> Iterator[Path]:
    """Yield checkpoints later than the target, the target, and all others."""
    others = [path for path in saved if target is None
              or path.resolve() != target.resolve()]
    if target is not None:
        # Both the file's time and the time inside must be later: copied files
        # have new file times, and a user may have named an older checkpoint.
        time_of_target = _saving_time(target)
        later = [path for path in others if path.stat().st_mtime_ns > since
                 and _saving_time(path) > time_of_target]
        yield from sorted(later, key=_saving_time, reverse=True)
        yield target
        others = [path for path in others if path not in later]
    yield from sorted(others, key=_saving_time, reverse=True)


def _saving_time(path: Path) -> tuple[str, int]:
    """Return time and step in the checkpoint, or the file's time and 0."""
    try:
        meta = peek(path)['meta']
        return str(meta['time']), int(meta['iter'])
    except Exception:  # damaged, of the old format, or not mmengine's
        modified = time.localtime(path.stat().st_mtime)
        return time.strftime(TIME_FORMAT, modified), 0
