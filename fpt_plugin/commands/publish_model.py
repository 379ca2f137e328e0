"""Convert a training checkpoint to one for release.

The result holds only what inference needs: the weights, the text of the config and
the names of the classes. It has only plain types, so that torch's safe loading can
read it where only torch is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..io.checkpoints import UNWRITABLE, find_state_dict, read_checkpoint
from ..io.files import check_writable, replacing
from ..version import __version__
from .console import print_lines

ERRORS = (OSError, RuntimeError, ValueError)

# Keys that the libraries read, then the origin of the weights; keys that end with
# "version" are kept too. Dates, the environment of the run and messages of hooks
# are dropped.
META = ('cfg', 'config', 'dataset_meta', 'CLASSES', 'PALETTE', 'epoch', 'iter',
        'seed')
# Keys of META that mmengine's message hub may hold.
RUNTIME = ('cfg', 'dataset_meta', 'epoch', 'iter')
DIGITS = 8  # of the SHA-256 in the file's name, as in OpenMMLab's own tools


@dataclass(frozen=True)
class Report:
    """Description of a published checkpoint.

    Attributes:
        source: The training checkpoint.
        out: The file that was written.
        tensors: Number of tensors.
        sizes: Bytes of the training checkpoint and of the new file.
        meta: Keys in its ``meta``.
        dropped: Keys that were left out.
        notes: Notes for the user.
    """

    source: Path
    out: Path
    tensors: int
    sizes: tuple[int, int]
    meta: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        before, after = (f'{size / 2**20:.1f} MiB' for size in self.sizes)
        return [
            f'read     {self.source}, {before}',
            f'kept     {self.tensors} tensors; meta: '
            f"{', '.join(self.meta) or 'nothing'}",
            f"left out {', '.join(self.dropped) or 'nothing'}",
            *(f'note     {note}' for note in self.notes),
            f'written  {self.out}, {after}',
        ]


def publish(source: str | Path, out: str | Path, force: bool = False) -> Report:
    """Write a checkpoint for release.

    Args:
        source: A training checkpoint, or any state dict.
        out: The file to write; ``-`` and the first digits of its SHA-256 are
            inserted before ``.pth``.
        force: Whether to replace a file of the final name.

    Raises:
        FileExistsError: The file exists.
        OSError: A file cannot be read or written.
        ValueError: ``source`` is no checkpoint, or the suffix of ``out`` is of
            another format.
    """
    source, out = Path(source), Path(out)
    check_writable(out, refused=UNWRITABLE)
    content = read_checkpoint(source)
    weights = find_state_dict(content, source)
    container_key = weights.container_key
    state_dict = compact(content[container_key] if container_key else content)
    meta, dropped = clean_meta(content if container_key else {})
    notes = []
    if 'ema_state_dict' in (content if container_key else ()):
        notes.append('the weights are the averaged ones: mmengine keeps them in '
                     'state_dict, and those of the last step in ema_state_dict')
    if container_key not in ('', 'state_dict'):
        notes.append(f'the weights are those under {container_key}')
    if 'cfg' not in meta:
        notes.append('there is no config in it: inference needs the config file too')

    buffer = io.BytesIO()  # torch.save to a file would write its name into it
    torch.save(dict(meta=meta, state_dict=state_dict), buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()[:DIGITS]
    suffix = out.suffix if out.suffix in ('.pth', '.pt') else ''
    final = out.with_name(
        f'{out.name[:len(out.name) - len(suffix)]}-{digest}{suffix or ".pth"}')
    check_writable(final, force=force)
    with replacing(final) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    outside = [key for key in content if key not in (container_key, 'meta')]
    return Report(
        source=source,
        out=final,
        tensors=sum(isinstance(x, Tensor) for x in state_dict.values()),
        sizes=(source.stat().st_size, final.stat().st_size),
        meta=tuple(meta),
        dropped=tuple([*outside, *dropped] if container_key else ()),
        notes=tuple(notes))


def compact(state_dict: Mapping[str, object]) -> OrderedDict[str, object]:
    """Copy tensors that are views, so that only their own memory is saved.

    torch.save would write the whole storage of a view. Tensors that share memory
    still share it. Module versions and plain values, such as extra states, are
    kept.

    Raises:
        ValueError: There are values of other types.
    """
    copies: dict[tuple, Tensor] = {}
    found = OrderedDict()
    for key, value in state_dict.items():
        try:
            found[key] = _compact(value, copies)
        except TypeError as error:
            raise ValueError(
                f'the state dict must hold tensors and plain values, got {key}: '
                f'{error}') from error
    metadata = getattr(state_dict, '_metadata', None)
    if isinstance(metadata, Mapping):
        found._metadata = plain(metadata)
    return found


def _compact(value: object, copies: dict[tuple, Tensor]) -> object:
    if isinstance(value, Mapping):
        return {key: _compact(item, copies) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_compact(item, copies) for item in value)
    if isinstance(value, (bytes, torch.dtype)):
        return value  # torch's safe loading accepts them
    if isinstance(value, np.ndarray):  # plain() would make it a list
        raise TypeError('expected a tensor, got a numpy array')
    if not isinstance(value, Tensor):
        return plain(value)
    value = value.detach().cpu()
    if value.layout == torch.strided and \
            value.untyped_storage().nbytes() > value.nbytes:
        view = (value.data_ptr(), value.dtype, value.shape, value.stride())
        value = copies.setdefault(view, value.clone())
    return value


def clean_meta(content: Mapping) -> tuple[dict, list[str]]:
    """Return the part of a checkpoint's meta that is published, in plain types.

    Args:
        content: A checkpoint of mmengine.

    Returns:
        The new meta, and the keys of the old one that were left out.
    """
    meta = content.get('meta')
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    hub = content.get('message_hub')
    runtime = hub.get('runtime_info') if isinstance(hub, Mapping) else None
    if isinstance(runtime, Mapping):
        for name in RUNTIME:
            if name in runtime:
                meta.setdefault(name, runtime[name])
    kept, dropped = {}, []
    for name, value in meta.items():
        if name in META or str(name).endswith('version'):
            try:
                kept[name] = plain(value)
                continue
            except TypeError:  # not a plain value
                pass
        dropped.append(f'meta.{name}')
    kept.setdefault('fpt_plugin_version', __version__)
    return kept, dropped


def plain(value: object) -> object:
    """Convert a value to numbers, strings, None, lists, tuples and dicts.

    Raises:
        TypeError: It holds values of other types.
    """
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        value = value.tolist()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, (list, set, frozenset)):
        return [plain(item) for item in value]
    if value is None:
        return None
    raise TypeError(f'expected a plain value, got {type(value).__name__}')


# ------------------------------------------------------------------------ command


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        description='Convert a training checkpoint to one for release: weights, '
        'config and classes are kept; the optimizer, the schedule and the log are '
        'removed. The new file can be loaded safely, and inferencers need no other '
        'file. The text of the config is not changed, so it includes your paths.')
    parser.add_argument('source', metavar='IN', help='checkpoint to read')
    parser.add_argument(
        'out',
        metavar='OUT',
        help='file to write; OUT.pth becomes OUT-xxxxxxxx.pth with the first '
        'digits of its SHA-256')
    parser.add_argument(
        '--force', action='store_true', help='replace an existing file')
    return parser


def main(args: argparse.Namespace) -> Report:
    """Run the command."""
    report = publish(args.source, args.out, args.force)
    print_lines(report.lines())
    return report
