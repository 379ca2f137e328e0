"""Figures of FPT's attention.

Rows are query levels and columns are key levels: ST lies on the diagonal, GT to
the right of it, and RT, which weights channels instead of pixels, to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ...io.files import replacing
from .maps import Branch, PixelAttention

DPI = 110
COLOURS = 'YlOrRd'
# Opacity of the photograph under the largest weight, and its contrast where the
# attention is zero.
UNDER_PEAK, LIGHT = 0.15, 0.55
SURROUNDINGS = 3  # drawn length around a window, in window sides
GAP = 0.03  # between the pictures of a grid, as a fraction of their width


def draw(image: np.ndarray, branches: Sequence[Branch], out: str | Path,
         title: str) -> Path:
    """Draw the attention of each branch in a panel of its own.

    Args:
        image: (H, W, 3), BGR.
        branches: Result of :func:`~.maps.attention_branches`.
        out: The PNG file.
        title: Text above the panels.

    Returns:
        ``out``.

    Raises:
        OSError: The file cannot be written; no partial file is left.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from PIL import Image

    rows = sorted({b.place[0] for b in branches})
    columns = sorted({b.place[1] for b in branches})
    attentions = next((b.attentions for b in branches if b.attentions), [])
    sheet = _Sheet(len(rows), len(columns), _aspect(attentions, image),
                   large=len(columns) < 3 or len(attentions) > 1)
    figure = plt.figure(figsize=(sheet.width, sheet.height), dpi=DPI)
    for branch in branches:
        row, column = rows.index(branch.place[0]), columns.index(branch.place[1])
        if branch.attentions:
            axis = figure.add_axes(sheet.place(row, column))
            _draw_attentions(axis, image, branch, sheet.panel[0])
        else:
            axis = figure.add_axes(sheet.place(row, column, ticks=True))
            _draw_weights(axis, branch)
    figure.text(0.5, 1 - 0.12 / sheet.height, title, ha='center', va='top',
                fontsize=10)
    if attentions:
        _draw_scale(figure, sheet, 'panel' if len(attentions) == 1 else 'picture')
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    # Photographs compress badly as PNG; 256 colours take a quarter of the size.
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(
        256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    with replacing(out) as temporary:
        picture.save(temporary, format='png', optimize=True)
    return Path(out)


class _Sheet:
    """Layout of the panels, in inches and in matplotlib's figure coordinates.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        aspect: Width / height of a panel.
        large: Make large panels.
    """

    TITLE, SCALE = 0.6, 0.65  # heights above and below all panels
    CAPTION, GAP, MARGIN = 0.42, 0.22, 0.2  # above a panel, between, around all
    TICKS = 0.36, 0.34  # left of and below a bar plot, inside its panel

    def __init__(self, rows: int, columns: int, aspect: float,
                 large: bool) -> None:
        side = 3.6 if large else 2.6
        # A minimum width for the captions, a minimum height for the pictures.
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
        """Return left, bottom, width and height of a panel's axes."""
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


def _aspect(attentions: Sequence[PixelAttention], image: np.ndarray) -> float:
    """Return width / height of a panel."""
    if not attentions:
        return 1.3
    x0, y0, x1, y1 = _seen(attentions[0], image)
    return (x1 - x0) / (y1 - y0)


def _seen(attention: PixelAttention, image: np.ndarray) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of the part of the image in the network's view."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = attention.view.box()
    return (max(0, round(x0)), max(0, round(y0)), min(width, round(x1)),
            min(height, round(y1)))


def _shown(attention: PixelAttention, image: np.ndarray) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of the part to draw: around the window, or all."""
    seen = x0, y0, x1, y1 = _seen(attention, image)
    if attention.window is None:
        return seen
    wx0, wy0, wx1, wy1 = _cells_box(attention, attention.window,
                                    attention.weights.shape)
    # Keep the aspect ratio of the view, so that all panels have one size.
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


def _draw_attentions(axis, image: np.ndarray, branch: Branch,
                     inches: float) -> None:
    """Draw one picture for each query pixel, row by row."""
    number = max(1, round(len(branch.attentions)**0.5))
    shown = [_shown(attention, image) for attention in branch.attentions]
    width = max(x1 - x0 for x0, _, x1, _ in shown)
    height = max(y1 - y0 for _, y0, _, y1 in shown)
    step = width * (1 + GAP), height + width * GAP
    for i, (attention, box) in enumerate(zip(branch.attentions, shown)):
        corner = (i % number) * step[0], (i // number) * step[1]
        _draw_attention(axis, image, attention, box, corner, inches / number,
                   marker=9 if number == 1 else max(2, 7 - number))
    rows = -(-len(branch.attentions) // number)
    axis.set_xlim(0, number * step[0] - width * GAP)
    axis.set_ylim(rows * step[1] - width * GAP, 0)
    axis.set_aspect('equal')
    axis.axis('off')
    axis.set_title(_title(branch), fontsize=9, linespacing=1.25)


def _draw_attention(axis, image: np.ndarray, attention: PixelAttention,
                    box: tuple[int, ...], corner: tuple[float, float],
                    inches: float, marker: float) -> None:
    """Draw the image, the attention weights over it, and the query pixel."""
    from matplotlib.patches import Rectangle
    x0, y0, x1, y1 = box
    left, top = corner[0] - x0, corner[1] - y0  # where the image's corner lies
    frame = Rectangle((left + x0, top + y0), x1 - x0, y1 - y0,
                      transform=axis.transData)
    axis.imshow(
        _backdrop(image[y0:y1, x0:x1], round(inches * DPI)),
        extent=(left + x0, left + x1, top + y1, top + y0))
    heat = axis.imshow(
        _colours(attention.weights),
        extent=_extent(attention, left, top),
        interpolation='nearest')
    heat.set_clip_path(frame)
    for cells, size, style in ((attention.window, attention.weights.shape, ':'),
                               ((*attention.cell, *(c + 1 for c in attention.cell)),
                                attention.size, '-')):
        if cells is None:
            continue
        cx0, cy0, cx1, cy1 = _cells_box(attention, cells, size)
        outline = Rectangle((left + cx0, top + cy0), cx1 - cx0, cy1 - cy0,
                            fill=False, edgecolor='white', linestyle=style,
                            linewidth=0.9)
        axis.add_patch(outline)
        outline.set_clip_path(frame)
    point = left + attention.point[0] + 0.5, top + attention.point[1] + 0.5
    for colour, extra in (('black', 1.8), ('cyan', 0)):
        axis.plot(*point, marker='+', markersize=marker + extra,
                  markeredgewidth=1.1 + extra, color=colour, clip_on=False)


def _backdrop(image: np.ndarray, pixels: int) -> np.ndarray:
    """Convert the photograph to light grey RGB, at most at display size."""
    factor = min(1, pixels / image.shape[1])
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    grey = cv2.cvtColor(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA),
        cv2.COLOR_BGR2GRAY)
    return np.repeat(255 - LIGHT * (255. - grey[..., None]), 3, 2).astype(np.uint8)


def _colours(weights: np.ndarray) -> np.ndarray:
    """Colour weights (h, w) as RGBA (h, w, 4), transparent where small."""
    from matplotlib import colormaps
    relative = weights / max(weights.max(), np.finfo(weights.dtype).tiny)
    colours = colormaps[COLOURS](relative)
    colours[..., 3] = (1 - UNDER_PEAK) * relative**0.5
    return colours


def _extent(attention: PixelAttention, left: float,
            top: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = attention.view.box()
    return left + x0, left + x1, top + y1, top + y0


def _cells_box(attention: PixelAttention, cells: tuple[int, ...],
               size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Convert rows and columns of a map to x0, y0, x1, y1 in the image."""
    x0, y0, x1, y1 = attention.view.box()
    high, wide = (y1 - y0) / size[0], (x1 - x0) / size[1]
    return (x0 + cells[1] * wide, y0 + cells[0] * high, x0 + cells[3] * wide,
            y0 + cells[2] * high)


def _title(branch: Branch) -> str:
    """Return the branch, and how its peak compares with uniform attention."""
    attentions = branch.attentions
    lines = [branch.title]
    if branch.key_stride > 1:
        lines[0] += f', keys pooled by {branch.key_stride}'
    if attentions[0].window is not None:
        lines[0] += ', around its window'
    if len(attentions) == 1:
        attention, = attentions
        lines.append(f'peak {_percent(attention.peak)}, '
                     f'{times(attention.peak * attention.keys)} even')
    else:
        ratios = [attention.peak * attention.keys for attention in attentions]
        lines.append(f'peaks {times(min(ratios))} to {times(max(ratios))} even')
    outside = max(attention.outside for attention in attentions)
    if outside > 5e-4:
        lines[-1] += f'; up to {_percent(outside)} outside' if len(attentions) > 1 \
            else f'; {_percent(outside)} outside'
    return '\n'.join(lines)


def times(ratio: float) -> str:
    """Format the ratio of a peak to uniform attention."""
    return f'{ratio:.0f}x' if ratio >= 9.95 else f'{ratio:.1f}x'


def _percent(weight: float) -> str:
    return f'{100 * weight:.2g} %' if weight < 0.995 else '100 %'


# --------------------------------------------------------------- weights, scale


def _draw_weights(axis, branch: Branch) -> None:
    """Draw RT's channel weights, one bar for each channel."""
    weights = np.mean(branch.channel_weights, axis=0)
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
    crops = f', mean of {len(branch.channel_weights)} crops' \
        if len(branch.channel_weights) > 1 else ''
    axis.set_title(f'{branch.title}\nchannel weights{crops}', fontsize=9,
                   linespacing=1.25)


def _draw_scale(figure, sheet: _Sheet, unit: str) -> None:
    """Draw one colour bar: each picture is scaled to its own peak."""
    from matplotlib.cm import ScalarMappable
    axis = figure.add_axes((0.3, 0.38 / sheet.height, 0.4, 0.1 / sheet.height))
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOURS), cax=axis, orientation='horizontal')
    bar.set_ticks([0, 1], labels=['0', f"the {unit}'s peak"], fontsize=8)
    bar.set_label('attention weight', fontsize=8, labelpad=-8)
