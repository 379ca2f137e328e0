"""Reading a checkpoint's tensors, and nothing else of it; writing new ones."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from .files import replacing, sha256_of

NESTS = ('state_dict', 'model', 'state_dict_ema')

# torch's name of what a module's get_extra_state returns.
_EXTRA = '_extra_state'

# Endings of files that are not written, for check_writable.
UNWRITABLE = {'.safetensors': 'torch.save writes another format, name it .pth'}


def loads_safely() -> bool:
    """Whether torch can be told which types a checkpoint may hold."""
    return tuple(map(int, re.findall(r'\d+', torch.__version__)[:2])) >= (2, 6)


class UnsafeFileError(ValueError):
    """A file could only be read by running what is in it."""


@dataclass
class Weights:
    """A net's tensors.

    Attributes:
        state_dict: Keys without ``module.`` and ``backbone.``.
        nest: Where in the checkpoint they were; '' for a bare state dict.
        outside: Keys beside the backbone, of a whole detector or segmentor.
        unread: Other state dicts that the checkpoint has too.
    """

    state_dict: dict[str, Tensor]
    nest: str = ''
    outside: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_weights(path: str | Path) -> Weights:
    """Read the tensors of a backbone, without the prefixes of their keys.

    Args:
        path: As for :func:`read_state_dict`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no checkpoint; see :func:`read_state_dict`.
    """
    return _strip(read_state_dict(path), Path(path))


def read_state_dict(path: str | Path) -> Weights:
    """Read a state dict, bare or nested, of a whole model or a part of it.

    Args:
        path: What torch.save wrote, or a ``.safetensors`` file. Only tensors
            and plain containers are unpickled: nothing in it is run.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no checkpoint, holds what is not safe to unpickle,
            has no state dict, or safetensors is not installed.
    """
    path = Path(path)
    weights = find_state_dict(read_checkpoint(path), path)
    if any(key.startswith('module.') for key in weights.state_dict):
        weights.state_dict = _renamed(weights.state_dict, 'module.', path)
    return weights


def read_checkpoint(path: str | Path) -> object:
    """What a file holds; it is read without running anything in it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no checkpoint, holds what is not safe to unpickle,
            or safetensors is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder, not a checkpoint')
    with path.open('rb') as file:  # a missing file is no broken one
        if path.suffix == '.safetensors':
            return _load_safetensors(path)
        return _load_torch(path, file)


def peek(path: str | Path) -> object:
    """Read what a file of torch.save holds, its tensors only when looked at.

    File systems that cannot map a file into memory have it read as a whole.

    Raises:
        OSError: The file cannot be read.
        RuntimeError: It is damaged.
        UnpicklingError: It holds what is not safe to unpickle.
    """
    try:
        return torch.load(
            path, map_location='cpu', weights_only=True, mmap=True)
    except (OSError, RuntimeError):
        return torch.load(path, map_location='cpu', weights_only=True)


def fetch_state_dict(url: str) -> Weights:
    """Download a checkpoint into torch's cache, or find it there, and read it.

    Where its name ends in the digits of its SHA-256, as OpenMMLab's do, they
    are checked; also of a file that is there, as others may have left it.

    Raises:
        OSError: It cannot be downloaded.
        RuntimeError: Its digest is another one.
        ValueError: As :func:`read_state_dict`.
    """
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(url).path).name
    match = re.search(r'-([0-9a-f]{8,})\.', path.name)
    digest = match[1] if match else ''
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.hub.download_url_to_file(
                url, str(temporary), digest or None)
    elif digest and path.is_file() and not sha256_of(path).startswith(digest):
        raise RuntimeError(f'{path} is not the file of its name, whose SHA-256 '
                           f'begins with {digest}: remove it, then it is '
                           'downloaded again')
    return read_state_dict(path)


def _load_torch(path: Path, file) -> object:
    try:
        with warnings.catch_warnings():  # about formats: an error says enough
            warnings.simplefilter('ignore')
            return torch.load(file, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever else unpickling makes of other files
        match = re.search(r'GLOBAL ([\w.]+)', str(error))
        if match and not loads_safely():
            raise UnsafeFileError(
                f'{path} holds {match[1]}. Checkpoints of trainings are read '
                f'safely by torch 2.6 and newer, got {torch.__version__}') \
                from error
        if match:
            raise UnsafeFileError(
                f'{path} holds {match[1]}, which is no tensor: it would have to '
                'be run to be read, and that is not safe. Save the state dict '
                'alone, where you trust the file.') from error
        raise ValueError(f'{path} is not a checkpoint that torch.load reads '
                         f'({_reason(error)})') from error


def _load_safetensors(path: Path) -> object:
    if find_spec('safetensors') is None:
        raise ValueError(f'{path} needs the package safetensors to be read: '
                         'pip install safetensors')
    from safetensors.torch import load_file
    try:
        return load_file(str(path), device='cpu')
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f'{path} is not a file of safetensors '
                         f'({_reason(error)})') from error


def _reason(error: Exception) -> str:
    """The first sentence of what it says, without advice to load unsafely."""
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip()
    text = text.partition('\n')[0].partition('. ')[0]
    name = type(error).__name__
    return f'{name}: {text[:120]}' if text else name


def find_state_dict(content: object, path: str | Path) -> Weights:
    """The tensors in what a checkpoint holds, under the keys that they have.

    Raises:
        ValueError: There is no state dict, neither by itself nor nested.
    """
    nests = NESTS if isinstance(content, Mapping) else ()
    found = [name for name in nests if _is_state_dict(content.get(name))]
    if found:
        return Weights(_copied(content[found[0]]), found[0], unread=found[1:])
    if _is_state_dict(content):
        return Weights(_copied(content))
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds one {type(content).__name__} and no '
                         'state dict')
    keys = ', '.join(str(key) for key in list(content)[:5]) or 'nothing'
    raise ValueError(
        f'{path} holds no state dict, neither by itself nor under '
        f"{', '.join(NESTS)}; it has {keys}")


def _copied(content: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors, with the versions of modules, which tell of old keys."""
    state_dict = OrderedDict((key, value) for key, value in content.items()
                             if isinstance(value, Tensor))
    if hasattr(content, '_metadata'):
        state_dict._metadata = content._metadata
    return state_dict


def _is_state_dict(content: object) -> bool:
    """Whether most of it are tensors: modules may have other states too."""
    if not isinstance(content, Mapping) or not all(
            isinstance(key, str) for key in content):
        return False
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    extra = sum(key.endswith(_EXTRA) for key in content)
    return tensors > 0 and 2 * tensors > len(content) - extra


def some(keys: Collection[str], limit: int = 4) -> str:
    """The first keys, for a message."""
    return ', '.join([*keys][:limit]) + (', ...' if len(keys) > limit else '')


def summarised(keys: Collection[str], among: Collection[str]) -> list[str]:
    """Keys, with modules of which all keys are there as ``module.*``."""
    given, whole = set(keys), {}
    for key in among:
        parts = key.split('.')
        for end in range(1, len(parts)):
            module = '.'.join(parts[:end])
            whole[module] = whole.get(module, True) and key in given
    found: dict[str, None] = {}
    for key in keys:
        parts = key.split('.')
        modules = ('.'.join(parts[:end]) for end in range(1, len(parts)))
        found[next((f'{m}.*' for m in modules if whole.get(m)), key)] = None
    return list(found)


def _strip(weights: Weights, path: Path) -> Weights:
    """Take off ``backbone.`` where any key has it."""
    state_dict = weights.state_dict
    if any(key.startswith('backbone.') for key in state_dict):
        weights.outside = [
            key for key in state_dict if not key.startswith('backbone.')
        ]
        state_dict = _renamed(
            {
                key: value
                for key, value in state_dict.items()
                if key.startswith('backbone.')
            }, 'backbone.', path)
        state_dict = _renamed(state_dict, 'module.', path)
    weights.state_dict = state_dict
    return weights


def _renamed(state_dict: dict[str, Tensor], prefix: str,
             path: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        new = key[len(prefix):] if key.startswith(prefix) else key
        if new in renamed:
            raise ValueError(f'{path} has the key {new} with and without '
                             f'{prefix}')
        renamed[new] = value
    return renamed


def write_weights(state_dict: dict[str, Tensor], out: str | Path) -> None:
    """Write a checkpoint for ``init_cfg=dict(type='Pretrained', ...)``.

    Raises:
        OSError: It cannot be written; nothing of it is left.
    """
    with replacing(out) as temporary:
        try:
            torch.save(dict(state_dict=state_dict), temporary)
        except RuntimeError as error:  # torch's own writer on a full disk
            raise OSError(f'{out} could not be written '
                          f'({_reason(error)})') from error
