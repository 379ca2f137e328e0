"""A picture of where a trained model's FPT looks: the tool's command."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from ...io.checkpoints import read_state_dict
from ...io.files import check_writable
from ...layers.checks import check_positive_int
from ..common import add_cfg_options, add_config, load_model, load_weights
from ..console import print_lines
from .figure import draw, times
from .maps import Branch, attention_branches
from .network_input import check_point, grid_points, network_views, read_image

ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError)

NO_CHECKPOINT = 'none'
LARGEST_GRID = 12


def parser() -> argparse.ArgumentParser:
    """The flags of tools/visualize_attention.py."""
    parser = argparse.ArgumentParser(
        description='Draw where FPT looks from a pixel of an image: the '
        'Self-Transformer within a level (ST), the Grounding Transformers '
        'across levels (GT, LGT in a window), and the channel weights of the '
        'Rendering Transformers (RT). A row is the level that looks, a column '
        'the level that is looked at. P3 is the level with a stride of 8; '
        'levels of equal stride are P3a, P3b, ... Colours are the shares by '
        'which the layer weights its values, up to the largest one of a panel; '
        '"12x even" compares that with equal shares of all keys. Of a neck '
        'of several FPT it is the last one; a segmentor that is tested by crops '
        'is shown the crop around the pixel.')
    add_config(parser)
    parser.add_argument(
        'checkpoint',
        help=f"the trained model, or '{NO_CHECKPOINT}' for random weights")
    parser.add_argument('image', help='image file')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        '--point',
        type=_point,
        metavar='X,Y',
        help='a pixel of the image file, counted from 0 at its upper left corner')
    where.add_argument(
        '--grid',
        type=int,
        metavar='N',
        help='N x N pixels instead of one, each in a small picture of its own')
    parser.add_argument(
        '--level',
        metavar='L',
        help='the level that looks, as P3 or 3 (default: all)')
    parser.add_argument(
        '--out',
        help='PNG file to write (default: attention_IMAGE.png in the current '
        'folder, named after the image)')
    parser.add_argument(
        '--force', action='store_true', help='replace the file if it is there')
    add_cfg_options(parser)
    return parser


def _point(text: str) -> tuple[int, int]:
    x, _, y = text.partition(',')
    try:
        return int(x), int(y)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'expected two whole numbers as in 320,200, got {text!r}') from None


def visualize_attention(config: str | Path | Config,
                        checkpoint: str | Path | None,
                        image: str | Path,
                        out: str | Path,
                        point: tuple[int, int] | None = None,
                        grid: int | None = None,
                        level: str | None = None,
                        force: bool = False,
                        cfg_options: dict | None = None) -> list[Branch]:
    """Draw where a model's FPT looks from pixels of an image.

    Args:
        config: As for :func:`fpt_plugin.commands.common.load_model`.
        checkpoint: The trained model; None: random weights.
        image: The image file.
        out: The PNG file to write.
        point: x and y of a pixel in the image.
        grid: Pixels a side of a grid, instead of a point.
        level: Name of the level that looks; None: all.
        force: Replace ``out`` if it is there.
        cfg_options: Settings that override the config's.

    Returns:
        What was drawn.

    Raises:
        OSError: A file cannot be read or written.
        TypeError: ``grid`` is not an int.
        ValueError: An argument is out of range; the image is none; the
            checkpoint is of another model; or the model has no FPT.
    """
    check_writable(out, suffixes=('.png', '.PNG'), force=force,
                   read=(config, checkpoint, image))
    pixels = read_image(image)
    if (point is None) == (grid is None):
        raise ValueError('either point or grid must be given, got '
                         f'point={point} and grid={grid}')
    if point is not None:
        check_point(point, pixels)
        points = [point]
    else:
        if check_positive_int('grid', grid) > LARGEST_GRID:
            raise ValueError(f'grid must be at most {LARGEST_GRID}, so that its '
                             f'pictures can be told apart, got {grid}')
        points = grid_points(grid, pixels)
    model, cfg = load_model(config, cfg_options)
    if checkpoint is not None:
        load_weights(model, read_state_dict(checkpoint).state_dict, checkpoint,
                     heads=False)
    views = network_views(model, cfg, image)
    branches = attention_branches(model, views, points, level)
    what = 'random weights' if checkpoint is None else Path(checkpoint).name
    where = f'pixel {point[0]},{point[1]}' if point else f'{grid} x {grid} pixels'
    draw(pixels, branches, out,
         f'{_name(config)}, {what}\n{Path(image).name} '
         f'({pixels.shape[1]}x{pixels.shape[0]}), {where}')
    return branches


def _name(config: str | Path | Config) -> str:
    path = config.filename if isinstance(config, Config) else config
    return Path(path).stem if path else 'a model'


def main(args: argparse.Namespace) -> list[Branch]:
    """What tools/visualize_attention.py does."""
    out = args.out or f'attention_{Path(args.image).stem}.png'
    checkpoint = None if args.checkpoint == NO_CHECKPOINT else args.checkpoint
    branches = visualize_attention(args.config, checkpoint, args.image, out,
                                   args.point, args.grid, args.level,
                                   args.force, args.cfg_options)
    lines = []
    for branch in branches:
        if branch.gazes:
            peaks = [gaze.peak * gaze.keys for gaze in branch.gazes]
            outside = max(gaze.outside for gaze in branch.gazes)
            text = f'peak {times(min(peaks))}'
            text += f' to {times(max(peaks))}' if len(peaks) > 1 else ''
            text += f' even shares of {branch.gazes[0].keys} keys'
            text += f', up to {outside:.1%} outside' if outside > 5e-4 else ''
        else:
            text = f'{len(branch.weights[0])} channel weights'
        lines.append(f'{branch.title:15} {text}')
    print_lines([*lines, f'Picture: {out}'])
    return branches
