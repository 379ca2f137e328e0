"""Pictures of where FPT looks.

A row is the level that looks and a column the level that is looked at: ST lies
on the diagonal, GT to the right of it and RT, whose weights are not of places
but of channels, to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from .attention_maps import Branch, Gaze
from .files import replacing

DPI = 110
COLOURS = 'inferno'
# How much of the photograph is left under the largest share, and how light it
# is where nothing is looked at.
UNDER_PEAK, LIGHT = 0.15, 0.55
GAP = 0.03  # between the pictures of a grid, of their width


def draw(image: np.ndarray, branches: Sequence[Branch], out: str | Path,
         title: str) -> Path:
    """Draw what each branch looks at, one panel a branch.

    Args:
        image: (H, W, 3), BGR.
        branches: What :func:`~.attention_maps.attention_branches` found.
        out: The PNG file.
        title: Above the panels.

    Returns:
        ``out``.

    Raises:
        OSError: It cannot be written; nothing of it is left.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    rows = sorted({b.place[0] for b in branches})
    columns = sorted({b.place[1] for b in branches})
    gazes = next((b.gazes for b in branches if b.gazes), [])
    aspect = _aspect(gazes, image)
    side = 2.9 if len(columns) > 2 else 3.6
    if len(gazes) > 1:
        side *= 1.3
    # Wide images in wide panels, tall ones in tall panels.
    width, height = side * max(1, aspect**0.5), side * max(1, aspect**-0.5)
    height = min(height, width / aspect) if aspect < 1.6 else width / aspect
    size = (width * len(columns) + 0.5, (height + 0.55) * len(rows) + 1.05)
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=size, squeeze=False, layout='constrained')
    for axis in axes.flat:
        axis.axis('off')
    for branch in branches:
        axis = axes[rows.index(branch.place[0])][columns.index(branch.place[1])]
        axis.axis('on')
        if branch.gazes:
            _draw_gazes(axis, image, branch, width)
        else:
            _draw_weights(axis, branch)
    figure.suptitle(title, fontsize=10)
    if gazes:
        _draw_scale(figure, axes)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=DPI, format='png')
    plt.close(figure)
    return Path(out)


def _aspect(gazes: Sequence[Gaze], image: np.ndarray) -> float:
    """Width by height of a panel."""
    if not gazes:
        return 1.3
    x0, y0, x1, y1 = _visible(gazes[0], image)
    return (x1 - x0) / (y1 - y0)


def _visible(gaze: Gaze, image: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the part of the image that the network saw."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = gaze.view.box()
    return (max(0, round(x0)), max(0, round(y0)), min(width, round(x1)),
            min(height, round(y1)))


# ------------------------------------------------------------------------- maps


def _draw_gazes(axis, image: np.ndarray, branch: Branch, inches: float) -> None:
    """One picture a point, in the order of a grid."""
    number = max(1, round(len(branch.gazes)**0.5))
    visible = [_visible(gaze, image) for gaze in branch.gazes]
    width = max(x1 - x0 for x0, _, x1, _ in visible)
    height = max(y1 - y0 for _, y0, _, y1 in visible)
    step = width * (1 + GAP), height + width * GAP
    for i, (gaze, box) in enumerate(zip(branch.gazes, visible)):
        corner = (i % number) * step[0], (i // number) * step[1]
        _draw_gaze(axis, image, gaze, box, corner, inches / number,
                   marker=9 if number == 1 else max(2, 7 - number))
    rows = -(-len(branch.gazes) // number)
    axis.set_xlim(0, number * step[0] - width * GAP)
    axis.set_ylim(rows * step[1] - width * GAP, 0)
    axis.set_aspect('equal')
    axis.axis('off')
    axis.set_title(_title(branch), fontsize=9, linespacing=1.25)


def _draw_gaze(axis, image: np.ndarray, gaze: Gaze, box: tuple[int, ...],
               corner: tuple[float, float], inches: float, marker: float) -> None:
    """The part of the image that was seen, its shares, and the pixel."""
    from matplotlib.patches import Rectangle
    x0, y0, x1, y1 = box
    left, top = corner[0] - x0, corner[1] - y0  # of the image's own corner
    frame = Rectangle((left + x0, top + y0), x1 - x0, y1 - y0,
                      transform=axis.transData)
    axis.imshow(
        _backdrop(image[y0:y1, x0:x1], round(inches * DPI)),
        extent=(left + x0, left + x1, top + y1, top + y0),
        interpolation='nearest')
    heat = axis.imshow(
        _colours(gaze.shares),
        extent=_extent(gaze, left, top),
        interpolation='nearest')
    heat.set_clip_path(frame)
    for cells, size, style in ((gaze.window, gaze.shares.shape, ':'),
                               ((*gaze.cell, *(c + 1 for c in gaze.cell)),
                                gaze.size, '-')):
        if cells is None:
            continue
        cx0, cy0, cx1, cy1 = _cells_box(gaze, cells, size)
        outline = Rectangle((left + cx0, top + cy0), cx1 - cx0, cy1 - cy0,
                            fill=False, edgecolor='white', linestyle=style,
                            linewidth=0.9)
        axis.add_patch(outline)
        outline.set_clip_path(frame)
    point = left + gaze.point[0] + 0.5, top + gaze.point[1] + 0.5
    for colour, extra in (('black', 1.8), ('cyan', 0)):
        axis.plot(*point, marker='+', markersize=marker + extra,
                  markeredgewidth=1.1 + extra, color=colour, clip_on=False)


def _backdrop(image: np.ndarray, pixels: int) -> np.ndarray:
    """The photograph in light grey, no larger than it is shown: RGB."""
    factor = min(1, pixels / image.shape[1])
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    grey = cv2.cvtColor(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA),
        cv2.COLOR_BGR2GRAY)
    return np.repeat(255 - LIGHT * (255. - grey[..., None]), 3, 2).astype(np.uint8)


def _colours(shares: np.ndarray) -> np.ndarray:
    """Colours of shares up to the largest one, transparent where it is small."""
    from matplotlib import colormaps
    relative = shares / max(shares.max(), np.finfo(shares.dtype).tiny)
    colours = colormaps[COLOURS](relative)
    colours[..., 3] = (1 - UNDER_PEAK) * relative**0.5
    return colours


def _extent(gaze: Gaze, left: float,
            top: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = gaze.view.box()
    return left + x0, left + x1, top + y1, top + y0


def _cells_box(gaze: Gaze, cells: tuple[int, ...],
               size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Rows and columns of a map as x0, y0, x1, y1 in the image."""
    x0, y0, x1, y1 = gaze.view.box()
    high, wide = (y1 - y0) / size[0], (x1 - x0) / size[1]
    return (x0 + cells[1] * wide, y0 + cells[0] * high, x0 + cells[3] * wide,
            y0 + cells[2] * high)


def _title(branch: Branch) -> str:
    """What looks at what, and how sharply."""
    gazes = branch.gazes
    lines = [branch.title]
    if branch.key_stride > 1:
        lines[0] += f', keys pooled by {branch.key_stride}'
    if len(gazes) == 1:
        gaze, = gazes
        lines.append(f'peak {_percent(gaze.peak)}, '
                     f'{gaze.peak * gaze.keys:.2g} times even')
    else:
        ratios = [gaze.peak * gaze.keys for gaze in gazes]
        lines.append(f'peaks {min(ratios):.2g} to {max(ratios):.2g} times even')
    outside = max(gaze.outside for gaze in gazes)
    if outside > 5e-4:
        lines[-1] += f'; up to {_percent(outside)} outside' if len(gazes) > 1 \
            else f'; {_percent(outside)} outside'
    return '\n'.join(lines)


def _percent(share: float) -> str:
    return f'{100 * share:.2g} %' if share < 0.995 else '100 %'


# --------------------------------------------------------------- weights, scale


def _draw_weights(axis, branch: Branch) -> None:
    """RT's channel weights, one bar a channel."""
    weights = np.mean(branch.weights, axis=0)
    limit = max(abs(weights).max(), np.finfo(np.float32).tiny)
    colours = np.where(weights >= 0, '#c2571a', '#3b6ea5')
    axis.bar(range(len(weights)), weights, width=1, color=colours)
    axis.axhline(0, color='black', linewidth=0.6)
    axis.set_xlim(-0.5, len(weights) - 0.5)
    axis.set_ylim(-1.05 * limit, 1.05 * limit)
    axis.tick_params(labelsize=7)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_xlabel('channel', fontsize=7, labelpad=1)
    crops = f', mean of {len(branch.weights)} crops' \
        if len(branch.weights) > 1 else ''
    axis.set_title(f'{branch.title}\nchannel weights{crops}', fontsize=9,
                   linespacing=1.25)


def _draw_scale(figure, axes) -> None:
    """One bar of colours: every panel reaches to its own peak."""
    from matplotlib.cm import ScalarMappable
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOURS), ax=list(axes.flat), location='bottom',
        shrink=0.4, aspect=45, pad=0.02)
    bar.set_ticks([0, 1], labels=['0', "the panel's peak"], fontsize=8)
    bar.set_label('share of attention', fontsize=8, labelpad=-8)
