"""Command that draws the attention of a trained model's FPT."""

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
    """Build the parser of tools/visualize_attention.py."""
    parser = argparse.ArgumentParser(
        description='Draw the attention of FPT from a pixel of an image: the '
        'Self-Transformer within a level (ST), the Grounding Transformers '
        'across levels (GT, LGT in a window), and the channel weights of the '
        'Rendering Transformers (RT). Rows are query levels, columns are key '
        'levels. P3 is the level with a stride of 8; levels of equal stride are '
        'P3a, P3b, ... Colours show attention weights up to the largest one of '
        'a panel; "12x even" compares this peak with uniform attention. If a '
        'neck has several FPT, the last one is shown. If a segmentor is tested '
        'by crops, the crop around the pixel is shown.')
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
        help='query pixel in the image file, counted from 0 at the upper left')
    where.add_argument(
        '--grid',
        type=int,
        metavar='N',
        help='N x N query pixels instead of one, a small picture for each')
    parser.add_argument(
        '--level',
        metavar='L',
        help='query level, as P3 or 3 (default: all)')
    parser.add_argument(
        '--out',
        help='PNG file to write (default: attention_IMAGE.png in the current '
        'folder, named after the image)')
    parser.add_argument(
        '--force', action='store_true', help='overwrite an existing file')
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
    """Draw the attention of a model's FPT from pixels of an image.

    Args:
        config: As for :func:`fpt_plugin.commands.common.load_model`.
        checkpoint: The trained model; None: random weights.
        image: The image file.
        out: The PNG file to write.
        point: x and y of a query pixel in the image.
        grid: Number of query pixels along each side of a grid, instead of a
            point.
        level: Name of the query level; None: all.
        force: Overwrite an existing ``out``.
        cfg_options: Settings that override the config's.

    Returns:
        The branches that were drawn.

    Raises:
        OSError: A file cannot be read or written.
        TypeError: ``grid`` is not an int.
        ValueError: An argument is out of range, the file is not an image, the
            checkpoint does not fit the model, or the model has no FPT.
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
                             f'pictures stay readable, got {grid}')
        points = grid_points(grid, pixels)
    model, cfg = load_model(config, cfg_options)
    if checkpoint is not None:
        load_weights(model, read_state_dict(checkpoint).state_dict, checkpoint,
                     heads=False)
    views = network_views(model, cfg, image)
    branches = attention_branches(model, views, points, level)
    weights = 'random weights' if checkpoint is None else Path(checkpoint).name
    queries = f'pixel {point[0]},{point[1]}' if point else f'{grid} x {grid} pixels'
    draw(pixels, branches, out,
         f'{_name(config)}, {weights}\n{Path(image).name} '
         f'({pixels.shape[1]}x{pixels.shape[0]}), {queries}')
    return branches


def _name(config: str | Path | Config) -> str:
    path = config.filename if isinstance(config, Config) else config
    return Path(path).stem if path else 'a model'


def main(args: argparse.Namespace) -> list[Branch]:
    """Draw the picture and print the peak of each branch."""
    out = args.out or f'attention_{Path(args.image).stem}.png'
    checkpoint = None if args.checkpoint == NO_CHECKPOINT else args.checkpoint
    branches = visualize_attention(args.config, checkpoint, args.image, out,
                                   args.point, args.grid, args.level,
                                   args.force, args.cfg_options)
    lines = []
    for branch in branches:
        if branch.attentions:
            peaks = [a.peak * a.keys for a in branch.attentions]
            outside = max(a.outside for a in branch.attentions)
            text = f'peak {times(min(peaks))}'
            text += f' to {times(max(peaks))}' if len(peaks) > 1 else ''
            text += f' uniform attention over {branch.attentions[0].keys} keys'
            text += f', up to {outside:.1%} outside' if outside > 5e-4 else ''
        else:
            text = f'{len(branch.channel_weights[0])} channel weights'
        lines.append(f'{branch.title:15} {text}')
    print_lines([*lines, f'Picture: {out}'])
    return branches
