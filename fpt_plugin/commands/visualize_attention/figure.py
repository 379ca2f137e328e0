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

from ...io.files import replacing
from .maps import Branch, Gaze

DPI = 110
COLOURS = 'YlOrRd'
# How much of the photograph is left under the largest share, and how light it
# is where nothing is looked at.
UNDER_PEAK, LIGHT = 0.15, 0.55
SURROUNDINGS = 3  # sides of a window that are drawn
GAP = 0.03  # between the pictures of a grid, of their width


def draw(image: np.ndarray, branches: Sequence[Branch], out: str | Path,
         title: str) -> Path:
    """Draw what each branch looks at, one panel a branch.

    Args:
        image: (H, W, 3), BGR.
        branches: What :func:`~.maps.attention_branches` found.
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
    from PIL import Image

    rows = sorted({b.place[0] for b in branches})
    columns = sorted({b.place[1] for b in branches})
    gazes = next((b.gazes for b in branches if b.gazes), [])
    sheet = _Sheet(len(rows), len(columns), _aspect(gazes, image),
                   large=len(columns) < 3 or len(gazes) > 1)
    figure = plt.figure(figsize=(sheet.width, sheet.height), dpi=DPI)
    for branch in branches:
        row, column = rows.index(branch.place[0]), columns.index(branch.place[1])
        if branch.gazes:
            axis = figure.add_axes(sheet.place(row, column))
            _draw_gazes(axis, image, branch, sheet.panel[0])
        else:
            axis = figure.add_axes(sheet.place(row, column, ticks=True))
            _draw_weights(axis, branch)
    figure.text(0.5, 1 - 0.12 / sheet.height, title, ha='center', va='top',
                fontsize=10)
    if gazes:
        _draw_scale(figure, sheet, 'panel' if len(gazes) == 1 else 'picture')
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    # Photographs compress badly; 256 colours are enough and a quarter the size.
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(
        256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    with replacing(out) as temporary:
        picture.save(temporary, format='png', optimize=True)
    return Path(out)


class _Sheet:
    """Where the panels go, in inches and as matplotlib's shares of the figure.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        aspect: Width by height of a panel.
        large: Whether there is room, or much to show, in each panel.
    """

    TITLE, SCALE = 0.6, 0.65  # heights above and below all panels
    CAPTION, GAP, MARGIN = 0.42, 0.22, 0.2  # above a panel, between, around all
    TICKS = 0.36, 0.34  # left of and below weights, inside of their panel

    def __init__(self, rows: int, columns: int, aspect: float,
                 large: bool) -> None:
        side = 3.6 if large else 2.6
        # Captions need their width, pictures their height.
        width = max(side * aspect**0.5, 2.3)
        self.panel = width, max(side * aspect**-0.5, 1.2)
        self.width = (2 * self.MARGIN + columns * width +
                      (columns - 1) * self.GAP)
        self.width = max(self.width, 4.5)
        self.left = (self.width - columns * width -
                     (columns - 1) * self.GAP) / 2
        self.height = (self.TITLE + self.SCALE + rows *
                       (self.CAPTION + self.panel[1] + self.GAP / 2))

    def place(self, row: int, column: int,
              ticks: bool = False) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of a panel's axes."""
        width, height = self.panel
        left = self.left + column * (width + self.GAP)
        top = self.TITLE + self.CAPTION + row * (
            self.CAPTION + height + self.GAP / 2)
        bottom = self.height - top - height
        if ticks:
            left, width = left + self.TICKS[0], width - self.TICKS[0]
            bottom, height = bottom + self.TICKS[1], height - self.TICKS[1]
        return (left / self.width, bottom / self.height, width / self.width,
                height / self.height)


def _aspect(gazes: Sequence[Gaze], image: np.ndarray) -> float:
    """Width by height of a panel."""
    if not gazes:
        return 1.3
    x0, y0, x1, y1 = _seen(gazes[0], image)
    return (x1 - x0) / (y1 - y0)


def _seen(gaze: Gaze, image: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the part of the image that the network saw."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = gaze.view.box()
    return (max(0, round(x0)), max(0, round(y0)), min(width, round(x1)),
            min(height, round(y1)))


def _shown(gaze: Gaze, image: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the part to draw: a window's surroundings, or all."""
    seen = x0, y0, x1, y1 = _seen(gaze, image)
    if gaze.window is None:
        return seen
    wx0, wy0, wx1, wy1 = _cells_box(gaze, gaze.window, gaze.shares.shape)
    # Of the form of the whole, so that all panels are equal.
    part = min(1, SURROUNDINGS * max((wx1 - wx0) / (x1 - x0),
                                     (wy1 - wy0) / (y1 - y0)))
    sides = []
    for low, high, middle in ((x0, x1, (wx0 + wx1) / 2),
                              (y0, y1, (wy0 + wy1) / 2)):
        length = max(1, round(part * (high - low)))
        start = min(max(round(middle - length / 2), low), high - length)
        sides.append((start, start + length))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


# ------------------------------------------------------------------------- maps


def _draw_gazes(axis, image: np.ndarray, branch: Branch, inches: float) -> None:
    """One picture a point, in the order of a grid."""
    number = max(1, round(len(branch.gazes)**0.5))
    shown = [_shown(gaze, image) for gaze in branch.gazes]
    width = max(x1 - x0 for x0, _, x1, _ in shown)
    height = max(y1 - y0 for _, y0, _, y1 in shown)
    step = width * (1 + GAP), height + width * GAP
    for i, (gaze, box) in enumerate(zip(branch.gazes, shown)):
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
        extent=(left + x0, left + x1, top + y1, top + y0))
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
    if gazes[0].window is not None:
        lines[0] += ', around its window'
    if len(gazes) == 1:
        gaze, = gazes
        lines.append(f'peak {_percent(gaze.peak)}, '
                     f'{times(gaze.peak * gaze.keys)} even')
    else:
        ratios = [gaze.peak * gaze.keys for gaze in gazes]
        lines.append(f'peaks {times(min(ratios))} to {times(max(ratios))} even')
    outside = max(gaze.outside for gaze in gazes)
    if outside > 5e-4:
        lines[-1] += f'; up to {_percent(outside)} outside' if len(gazes) > 1 \
            else f'; {_percent(outside)} outside'
    return '\n'.join(lines)


def times(ratio: float) -> str:
    """A peak against equal shares of all keys."""
    return f'{ratio:.0f}x' if ratio >= 9.95 else f'{ratio:.1f}x'


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
    axis.locator_params(axis='y', nbins=5)
    axis.yaxis.get_offset_text().set_size(7)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_xlabel('channel', fontsize=7, labelpad=1)
    crops = f', mean of {len(branch.weights)} crops' \
        if len(branch.weights) > 1 else ''
    axis.set_title(f'{branch.title}\nchannel weights{crops}', fontsize=9,
                   linespacing=1.25)


def _draw_scale(figure, sheet: _Sheet, whose: str) -> None:
    """One bar of colours: every picture reaches to its own peak."""
    from matplotlib.cm import ScalarMappable
    axis = figure.add_axes((0.3, 0.38 / sheet.height, 0.4, 0.1 / sheet.height))
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOURS), cax=axis, orientation='horizontal')
    bar.set_ticks([0, 1], labels=['0', f"the {whose}'s peak"], fontsize=8)
    bar.set_label('share of attention', fontsize=8, labelpad=-8)
