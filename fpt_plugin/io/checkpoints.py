"""Read and write the tensors of checkpoints, without running code in them."""

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

# Keys under which a checkpoint may contain its state dict, in order of preference.
CONTAINER_KEYS = ('state_dict', 'model', 'state_dict_ema')

# Last part of a key whose value comes from a module's get_extra_state.
_EXTRA = '_extra_state'

# Suffixes that are not written, and why; for check_writable.
UNWRITABLE = {'.safetensors': 'torch.save writes another format, name it .pth'}


def loads_safely() -> bool:
    """Return whether torch has a list of types that a checkpoint may hold."""
    return tuple(map(int, re.findall(r'\d+', torch.__version__)[:2])) >= (2, 6)


class UnsafeFileError(ValueError):
    """A file could only be read by running code in it."""


@dataclass
class Weights:
    """The tensors of a network.

    Attributes:
        state_dict: Keys without ``module.`` and ``backbone.``.
        container_key: The checkpoint's key that had them; '' for a bare state
            dict.
        outside: Keys outside the backbone, in a detector or segmentor.
        unread: Keys of other state dicts in the checkpoint.
    """

    state_dict: dict[str, Tensor]
    container_key: str = ''
    outside: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_weights(path: str | Path) -> Weights:
    """Read the tensors of a backbone, and remove the prefixes of their keys.

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
        path: A file of torch.save, or a ``.safetensors`` file. Only tensors and
            plain containers are unpickled; no code in the file is run.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no checkpoint, holds objects that are not safe to
            unpickle, has no state dict, or safetensors is not installed.
    """
    path = Path(path)
    weights = find_state_dict(read_checkpoint(path), path)
    if any(key.startswith('module.') for key in weights.state_dict):
        weights.state_dict = _renamed(weights.state_dict, 'module.', path)
    return weights


def read_checkpoint(path: str | Path) -> object:
    """Read the content of a checkpoint without running code in it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no checkpoint, holds objects that are not safe to
            unpickle, or safetensors is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder, not a checkpoint')
    with path.open('rb') as file:  # a missing file raises FileNotFoundError
        if path.suffix == '.safetensors':
            return _load_safetensors(path)
        return _load_torch(path, file)


def peek(path: str | Path) -> object:
    """Read a file of torch.save, but load tensors only on access.

    If the file system cannot map files into memory, all is loaded at once.

    Raises:
        OSError: The file cannot be read.
        RuntimeError: It is damaged.
        UnpicklingError: It holds objects that are not safe to unpickle.
    """
    try:
        return torch.load(
            path, map_location='cpu', weights_only=True, mmap=True)
    except (OSError, RuntimeError):
        return torch.load(path, map_location='cpu', weights_only=True)


def fetch_state_dict(url: str) -> Weights:
    """Read a checkpoint from a URL, through torch's download cache.

    If the file name ends with digits of its SHA-256, as OpenMMLab's do, they are
    checked, also for a cached file.

    Raises:
        OSError: It cannot be downloaded.
        RuntimeError: Its SHA-256 differs from its name.
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
        with warnings.catch_warnings():  # about formats; errors are enough
            warnings.simplefilter('ignore')
            return torch.load(file, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpickling other files raises many types
        match = re.search(r'GLOBAL ([\w.]+)', str(error))
        if match and not loads_safely():
            raise UnsafeFileError(
                f'{path} holds {match[1]}. Checkpoints of trainings are read '
                f'safely by torch 2.6 and newer, got {torch.__version__}') \
                from error
        if match:
            raise UnsafeFileError(
                f'{path} holds {match[1]}, which is no tensor: reading it would '
                'run code, and that is not safe. If you trust the file, save only '
                'its state dict.') from error
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
    """Return the first sentence of an error, without advice to load unsafely."""
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip()
    text = text.partition('\n')[0].partition('. ')[0]
    name = type(error).__name__
    return f'{name}: {text[:120]}' if text else name


def find_state_dict(content: object, path: str | Path) -> Weights:
    """Find the tensors in the content of a checkpoint; their keys are kept.

    Raises:
        ValueError: There is no state dict, neither bare nor nested.
    """
    keys = CONTAINER_KEYS if isinstance(content, Mapping) else ()
    found = [key for key in keys if _is_state_dict(content.get(key))]
    if found:
        return Weights(_copied(content[found[0]]), found[0], unread=found[1:])
    if _is_state_dict(content):
        return Weights(_copied(content))
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds one {type(content).__name__} and no '
                         'state dict')
    keys = ', '.join(str(key) for key in list(content)[:5]) or 'nothing'
    raise ValueError(
        f'{path} holds no state dict, neither bare nor under '
        f"{', '.join(CONTAINER_KEYS)}; it has {keys}")


def _copied(content: Mapping[str, object]) -> dict[str, Tensor]:
    """Copy the tensors, and the module versions that torch uses for old keys."""
    state_dict = OrderedDict((key, value) for key, value in content.items()
                             if isinstance(value, Tensor))
    if hasattr(content, '_metadata'):
        state_dict._metadata = content._metadata
    return state_dict


def _is_state_dict(content: object) -> bool:
    """Return whether most values are tensors; modules may add other states."""
    if not isinstance(content, Mapping) or not all(
            isinstance(key, str) for key in content):
        return False
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    extra = sum(key.endswith(_EXTRA) for key in content)
    return tensors > 0 and 2 * tensors > len(content) - extra


def some(keys: Collection[str], limit: int = 4) -> str:
    """Join the first keys for a message."""
    return ', '.join([*keys][:limit]) + (', ...' if len(keys) > limit else '')


def summarised(keys: Collection[str], among: Collection[str]) -> list[str]:
    """Replace the keys of a module by ``module.*`` where all of them are given.

    Args:
        keys: The keys to summarise.
        among: All keys, which define the modules.
    """
    given, complete = set(keys), {}
    for key in among:
        parts = key.split('.')
        for end in range(1, len(parts)):
            module = '.'.join(parts[:end])
            complete[module] = complete.get(module, True) and key in given
    found: dict[str, None] = {}
    for key in keys:
        parts = key.split('.')
        modules = ('.'.join(parts[:end]) for end in range(1, len(parts)))
        found[next((f'{m}.*' for m in modules if complete.get(m)), key)] = None
    return list(found)


def _strip(weights: Weights, path: Path) -> Weights:
    """Keep only the keys of the backbone, without their prefix, if there are any."""
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
        OSError: It cannot be written; no partial file remains.
    """
    with replacing(out) as temporary:
        try:
            torch.save(dict(state_dict=state_dict), temporary)
        except RuntimeError as error:  # torch's writer, on a full disk
            raise OSError(f'{out} could not be written '
                          f'({_reason(error)})') from error
