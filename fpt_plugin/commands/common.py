"""Arguments, configs and models that several commands share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config, DictAction
from torch import Tensor, nn

from ..detectors.levels import check_levels
from ..io.checkpoints import some, summarised
from ..layers.checks import check_positive_int
from ..necks import FPT
from ..openmmlab.models import build_model, load_config
from ..openmmlab.pins import SCOPES

DETECTION_SHAPE = (800, 1344)


def load_model(config: str | Path | Config,
               cfg_options: dict | None = None) -> tuple[nn.Module, Config]:
    """Build the model of a config without downloading weights.

    Arguments and errors are those of :func:`load_config`.

    Returns:
        The model and the config.

    Raises:
        ValueError: The levels of the neck do not fit the head or transformer.
    """
    config = load_config(config, cfg_options)
    model = build_model(config)
    check_levels(model)
    return model, config


class Loaded(NamedTuple):
    """The parts of a checkpoint that were not loaded.

    Attributes:
        ignored: Keys outside the model's children, such as averaged weights.
        reshaped: A message on tensors outside backbones and necks whose shape in
            the model differs, so that the model keeps its own; '' if none.
    """

    ignored: list[str]
    reshaped: str


def load_weights(model: nn.Module,
                 state_dict: Mapping[str, Tensor],
                 source: str | Path,
                 heads: bool = True,
                 other_classes: bool = False) -> Loaded:
    """Load a checkpoint of the same model, and check that all of it fits.

    Args:
        model: The model.
        state_dict: The checkpoint's tensors.
        source: Its name, for messages.
        heads: Whether to load the whole model; False: only backbones, necks and
            FPT.
        other_classes: Whether tensors outside backbones and necks may have
            another shape, as a head's last layers for other classes do.

    Raises:
        ValueError: The checkpoint is of another model, or has other heads.
    """
    features = _feature_prefixes(model)
    prefixes = tuple(f'{name}.' for name, _ in model.named_children()) \
        if heads else features
    shapes = {key: value.shape for key, value in model.state_dict().items()
              if isinstance(value, Tensor)
              and not key.endswith('num_batches_tracked')}
    given = state_dict if heads else {
        key: value for key, value in state_dict.items()
        if key.startswith(prefixes)}
    another = f'{source} is a checkpoint of another model than this ' \
        f'{type(model).__name__}'
    # Missing keys explain more than shapes, so they are reported first.
    try:
        result, reshaped = load_what_fits(model, given)
    except RuntimeError as error:  # shapes under the keys of a plain neck
        lines = str(error).strip().splitlines()
        lines = lines[1:3] or lines  # torch's first line only names the class
        raise ValueError(f'{another}: '
                         f'{" ".join(line.strip() for line in lines)}') from error
    missing = [key for key in result.missing_keys
               if key in shapes and key not in reshaped
               and (heads or key.startswith(prefixes))]
    foreign = [key for key in result.unexpected_keys if key.startswith(prefixes)]
    found = [f'{len(keys)} keys {what} ({some(summarised(keys, among), 3)})'
             for what, keys, among in (
                 ('of the model are missing', missing, shapes),
                 ('have no place in it', foreign, state_dict)) if keys]
    features_fit = not any(key.startswith(features) for key in reshaped)
    if reshaped and not found and not (features_fit and other_classes):
        found = [_another_shape(reshaped, shapes)]
        if features_fit:
            another = f'{source} is a checkpoint of this ' \
                f'{type(model).__name__} with other classes or other heads'
    if found:
        raise ValueError(f'{another}: {" and ".join(found)}')
    return Loaded([key for key in result.unexpected_keys if key not in foreign],
                  _another_shape(reshaped, shapes) if reshaped else '')


def load_what_fits(
    model: nn.Module, state_dict: Mapping[str, Tensor]
) -> tuple[NamedTuple, dict[str, str]]:
    """Load all tensors of a checkpoint except those of another shape.

    Returns:
        torch's result with missing and unexpected keys, and the checkpoint's
        shapes of the tensors that were left out, by their keys in the model,
        which may rename keys.

    Raises:
        RuntimeError: Tensors of another shape cannot be assigned to keys.
    """
    try:
        return model.load_state_dict(state_dict, strict=False), {}
    except RuntimeError as error:
        reshaped = dict(re.findall(
            r'size mismatch for (\S+): .*? shape torch\.Size\((\[.*?\])\)',
            str(error)))
        rest = copy(state_dict)  # keeps the module versions in its metadata
        for key in state_dict:
            if any(f'.{name}'.endswith(f'.{key}') for name in reshaped):
                del rest[key]
        return model.load_state_dict(rest, strict=False), reshaped


def _another_shape(reshaped: Mapping[str, str],
                   shapes: Mapping[str, Sequence[int]]) -> str:
    """Describe tensors of another shape, with one example."""
    key = next(iter(reshaped))
    return (f'{len(reshaped)} tensors have another shape ({key} {reshaped[key]} '
            f'instead of {[*shapes[key]]})')


def _feature_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return the key prefixes of the outermost backbones, necks and FPTs."""
    found: tuple[str, ...] = ()
    for name, module in model.named_modules():
        wanted = name.rpartition('.')[2] in ('backbone', 'neck') or isinstance(
            module, FPT)
        if wanted and not name.startswith(found):
            found += (f'{name}.' if name else '', )
    return found


def image_shape(model: nn.Module, cfg: Config | None,
                shape: Sequence[int] | None) -> tuple[int, int]:
    """Return height and width of the images: ``shape``, or the model's default.

    Raises:
        TypeError: A side is not an int.
        ValueError: ``shape`` is not two sides of at least 1, or it is None and
            the model has no default.
    """
    if shape is None and not hasattr(model, 'decode_head'):
        shape = DETECTION_SHAPE
    if shape is None:
        preprocessor = getattr(model, 'data_preprocessor', None)
        shape = getattr(preprocessor, 'size', None) or (
            cfg or {}).get('crop_size')
    if shape is None:
        raise ValueError('shape must be height and width for a segmentor '
                         'without a crop size, got None')
    if len(shape) != 2:
        raise ValueError(f'shape must be height and width, got {tuple(shape)}')
    height, width = (check_positive_int('shape', side) for side in shape)
    return height, width


def positive_int(text: str) -> int:
    """Convert an argument that must be a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'expected a whole number of at least 1, got {text!r}')
    return int(text)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the config to the arguments of a command."""
    parser.add_argument(
        'config',
        help='config file, or mmdet:: or mmseg:: and a file of that '
        "library's configs")


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` to the arguments of a command."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config, as key=value; lists as '
        'key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]", without '
        'white space')


def add_shape(parser: argparse.ArgumentParser | argparse._ArgumentGroup,
              text: str,
              default: tuple[int, int] | None = None) -> None:
    """Add ``--shape H W`` to the arguments of a command."""
    parser.add_argument(
        '--shape',
        nargs=2,
        type=positive_int,
        default=default,
        metavar=('H', 'W'),
        help=text)


def launch_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that train and test share."""
    parser = argparse.ArgumentParser(description=description)
    add_config(parser)
    parser.add_argument(
        '--work-dir',
        help='folder of logs, checkpoints and metrics (default: the '
        "config's work_dir, else work_dirs/ and the config's name)")
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes --local-rank since torch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def launch_config(args: argparse.Namespace,
                  scopes: Sequence[str] = SCOPES) -> Config:
    """Read the config and apply the arguments that train and test share.

    Args:
        args: The arguments of :func:`launch_parser`.
        scopes: Allowed values of ``default_scope``.

    Raises:
        OSError: There is no such config.
        ValueError: The config has no model, or another ``default_scope``.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    if cfg.default_scope not in scopes:
        raise ValueError('the config must set default_scope to one of '
                         f'{tuple(scopes)}, got {cfg.default_scope!r} in {args.config}')
    if cfg.default_scope == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo
        setup_cache_size_limit_of_dynamo()
    return cfg


def config_folder(package: str) -> Path:
    """Return the folder of a package's configs, in a checkout or installed.

    Raises:
        FileNotFoundError: The package or its configs are not installed.
    """
    try:
        folder = Path(import_module(package).__file__).resolve().parent
    except ImportError as error:
        raise FileNotFoundError(f'{package} is not installed') from error
    for configs in (folder / '.mim' / 'configs', folder.parent / 'configs'):
        if configs.is_dir():
            return configs
    raise FileNotFoundError(f'{package} was installed without its configs')


@contextmanager
def reporting(name: str, *errors: type[Exception]) -> Iterator[None]:
    """End the process with one line if an expected error is raised."""
    try:
        yield
    except errors as error:
        sys.exit(f'{name} failed: {error}')
