"""A training checkpoint made fit for release: what publish_model.py does.

What is left is what inference needs: the weights, the config's text, and what
the data's classes are called. It is of plain types alone, so that torch's safe
loading reads it where nothing but torch is installed.
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

# What the libraries read, then what tells where the weights come from, versions
# too. Dates, the environment of the run and its hooks' messages are left out.
META = ('cfg', 'config', 'dataset_meta', 'CLASSES', 'PALETTE', 'epoch', 'iter',
        'seed')
# What mmengine's message hub holds under the same names.
RUNTIME = ('cfg', 'dataset_meta', 'epoch', 'iter')
DIGITS = 8  # of the digest in the file's name, as the libraries' tools have it


@dataclass(frozen=True)
class Report:
    """What was published.

    Attributes:
        source: The checkpoint of the training.
        out: The file that was written.
        tensors: How many tensors it holds.
        sizes: Bytes of the checkpoint and of the file.
        meta: Names of what it holds beside the tensors.
        dropped: Names of what was left out.
        notes: What the user should know.
    """

    source: Path
    out: Path
    tensors: int
    sizes: tuple[int, int]
    meta: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report, line by line."""
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
    """Write the part of a checkpoint that is for others.

    Args:
        source: What training saved, or any state dict.
        out: The file to write; ``-`` and the first digits of its SHA-256 are
            put before ``.pth``.
        force: Whether a file of that very name is written anew.

    Raises:
        FileExistsError: There is such a file.
        OSError: A file cannot be read or written.
        ValueError: ``source`` is no checkpoint, or ``out`` of another format.
    """
    source, out = Path(source), Path(out)
    check_writable(out, refused=UNWRITABLE)
    content = read_checkpoint(source)
    weights = find_state_dict(content, source)
    state_dict = compact(content[weights.nest] if weights.nest else content)
    meta, dropped = clean_meta(content if weights.nest else {})
    notes = []
    if 'ema_state_dict' in (content if weights.nest else ()):
        notes.append('the weights are the averaged ones: mmengine keeps them in '
                     'state_dict, and those of the last step in ema_state_dict')
    if weights.nest not in ('', 'state_dict'):
        notes.append(f'the weights are those under {weights.nest}')
    if 'cfg' not in meta:
        notes.append('no config is inside: inference needs the config file too')

    buffer = io.BytesIO()  # the digest is of the content, not of a file's name
    torch.save(dict(meta=meta, state_dict=state_dict), buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()[:DIGITS]
    suffix = out.suffix if out.suffix in ('.pth', '.pt') else ''
    final = out.with_name(
        f'{out.name[:len(out.name) - len(suffix)]}-{digest}{suffix or ".pth"}')
    check_writable(final, force=force)
    with replacing(final) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    outside = [key for key in content if key not in (weights.nest, 'meta')]
    return Report(
        source=source,
        out=final,
        tensors=sum(isinstance(x, Tensor) for x in state_dict.values()),
        sizes=(source.stat().st_size, final.stat().st_size),
        meta=tuple(meta),
        dropped=tuple([*outside, *dropped] if weights.nest else ()),
        notes=tuple(notes))


def compact(state_dict: Mapping[str, object]) -> OrderedDict[str, object]:
    """The same tensors, each with no more memory than it needs.

    Views of a larger storage would be saved with all of it. Tensors that are
    one and the same stay so. What modules note about their versions is kept,
    and so are plain values beside the tensors, such as their extra states.

    Raises:
        ValueError: There is something else in it.
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
        return value  # torch's own loading knows them
    if isinstance(value, np.ndarray):  # a list is not what was there
        raise TypeError('expected a tensor, got a numpy array')
    if not isinstance(value, Tensor):
        return plain(value)
    value = value.detach().cpu()
    if value.layout == torch.strided and \
            value.untyped_storage().nbytes() > value.nbytes:
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        value = copies.setdefault(place, value.clone())
    return value


def clean_meta(content: Mapping) -> tuple[dict, list[str]]:
    """What is told about the weights, in plain types.

    Args:
        content: A checkpoint of mmengine.

    Returns:
        The new meta and the names in the old one that it lacks.
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
            except TypeError:  # an object of the run
                pass
        dropped.append(f'meta.{name}')
    kept.setdefault('fpt_plugin_version', __version__)
    return kept, dropped


def plain(value: object) -> object:
    """The same value as numbers, strings, None, lists, tuples and dicts.

    Raises:
        TypeError: There is something else in it.
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
    """The flags of tools/publish_model.py."""
    parser = argparse.ArgumentParser(
        description='Make a training checkpoint fit for release: weights, config '
        'and classes stay; the optimizer, the schedule and the log go. The file '
        'needs no trust to be loaded, and the inferencers need nothing else. The '
        'text of the config is kept as it is, the paths in it included.')
    parser.add_argument('source', metavar='IN', help='checkpoint to read')
    parser.add_argument(
        'out',
        metavar='OUT',
        help='file to write; OUT.pth becomes OUT-xxxxxxxx.pth with the first '
        'digits of its SHA-256')
    parser.add_argument(
        '--force', action='store_true', help='write over a file of that name')
    return parser


def main(args: argparse.Namespace) -> Report:
    """What tools/publish_model.py does."""
    report = publish(args.source, args.out, args.force)
    print_lines(report.lines())
    return report
