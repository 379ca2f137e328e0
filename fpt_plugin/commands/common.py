"""What several commands share: flags, configs and models."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, DictAction
from torch import nn

from ..detectors.levels import check_levels
from ..layers.checks import check_positive_int
from ..openmmlab.models import build_model, load_config
from ..openmmlab.pins import SCOPES

DETECTION_SHAPE = (800, 1344)


def load_model(config: str | Path | Config,
               cfg_options: dict | None = None) -> tuple[nn.Module, Config]:
    """Build the model of a config; nothing is downloaded.

    Takes and raises what :func:`load_config` does.

    Returns:
        The model and the config.
    """
    config = load_config(config, cfg_options)
    model = build_model(config)
    check_levels(model)
    return model, config


def image_shape(model: nn.Module, cfg: Config | None,
                shape: Sequence[int] | None) -> tuple[int, int]:
    """Height and width of the images: as given, or as usual for the model.

    Raises:
        TypeError: A side is not an int.
        ValueError: ``shape`` is not two sides of at least 1, or is required.
    """
    if shape is None and not hasattr(model, 'decode_head'):
        shape = DETECTION_SHAPE
    if shape is None:
        preprocessor = getattr(model, 'data_preprocessor', None)
        shape = getattr(preprocessor, 'size', None) or (
            cfg or {}).get('crop_size')
    if shape is None:
        raise ValueError('shape must be height and width here, as the '
                         'segmentor names no size of its crops, got None')
    if len(shape) != 2:
        raise ValueError(f'shape must be height and width, got {tuple(shape)}')
    height, width = (check_positive_int('shape', side) for side in shape)
    return height, width


def positive_int(text: str) -> int:
    """The type of a flag that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'expected a whole number of at least 1, got {text!r}')
    return int(text)


def launch_parser(description: str) -> argparse.ArgumentParser:
    """Return the flags that train and test share, those of mmdet and mmseg."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file path')
    parser.add_argument(
        '--work-dir',
        help='folder of logs, checkpoints and metrics (default: the '
        "config's work_dir, else work_dirs/ and the config's name)")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config, as key=value; lists as '
        'key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]", without '
        'white space')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes the second spelling since torch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def launch_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the flags that train and test share.

    Raises:
        OSError: There is no such config.
        ValueError: The config has no model, or names no ``default_scope`` of
            mmdet or mmseg.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    if cfg.default_scope not in SCOPES:
        raise ValueError('the config must set default_scope to one of '
                         f'{SCOPES}, got {cfg.default_scope!r} in {args.config}')
    if cfg.default_scope == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo
        setup_cache_size_limit_of_dynamo()
    return cfg


def shipped_config(name: str | Path) -> Path:
    """Return the path of one of our configs, in a checkout or an installed wheel.

    Args:
        name: The path below configs/, or any absolute path.

    Raises:
        FileNotFoundError: There is no such config.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / '.mim' / 'configs', package.parent / 'configs'):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f'fpt_plugin has no config {name}')


@contextmanager
def reporting(name: str, *errors: type[Exception]) -> Iterator[None]:
    """End the process with one line where a command meets an expected error."""
    try:
        yield
    except errors as error:
        sys.exit(f'{name} failed: {error}')
