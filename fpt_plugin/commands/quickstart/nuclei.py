"""A stained section of tissue as a small segmentation dataset.

The package histolytics (BSD-3-Clause) has one H&E image of ovarian cancer with a
mask of cell nuclei by type. The masks look like the output of a model, not the
work of a pathologist, so they are called pseudo-labels here. The image is cut
into disjoint tiles; every 4th tile is held out. A second image, of stroma, has
polygons of its nuclei and is used only for testing.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np

from ...io.files import replacing
from .packages import Package, read_member
from .trees import HELD_OUT, tile_grid

HISTOLYTICS = Package(
    requirement='histolytics==0.3.0',
    wheel='histolytics-0.3.0-py3-none-any.whl',
    sha256='de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137',
    content='a stained section of tissue with pseudo-labels of cell nuclei',
    source='the package histolytics 0.3.0',
    licence='BSD-3-Clause')
# In the order of the mask's class numbers.
CLASSES = ('background', 'connective', 'inflammatory', 'neoplastic')
IMAGE = 'histolytics/data/hgsc_nest.jpg'
MASK = 'histolytics/data/hgsc_nest_type_mask.npz'
TILE = 250
SPLITS = ('train', 'val')
STROMA_IMAGE = 'histolytics/data/hgsc_stromal_he.jpg'
STROMA_POLYGONS = 'histolytics/data/hgsc_stromal_cells.parquet'


def read_mask(archive: bytes, classes: int = len(CLASSES)) -> np.ndarray:
    """Read class numbers (H, W), uint8, from ``nuc_raster`` of an archive.

    Raises:
        ValueError: The archive has no such array, or a label is not a class.
    """
    with np.load(BytesIO(archive), allow_pickle=False) as arrays:
        if 'nuc_raster' not in arrays:
            raise ValueError('the mask must hold nuc_raster, got '
                             f'{sorted(arrays)}')
        mask = arrays['nuc_raster']
    labels = np.unique(mask)
    if mask.ndim != 2 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f'the mask must be (H, W) with labels from 0 to '
                         f'{classes - 1}, got {mask.shape} with labels '
                         f'{labels.tolist()}')
    return mask.astype(np.uint8)


def prepare_nuclei(root: str | Path, cache: str | Path) -> Path:
    """Make the dataset in ``root`` if it does not exist.

    Args:
        root: Folder of the dataset, with ``images/train``, ``images/val``, and
            the same under ``labels``.
        cache: Folder of the downloaded wheel.

    Returns:
        ``root``.

    Raises:
        RuntimeError: The image cannot be downloaded, or ``root`` is another
            folder.
        ValueError: Image and mask differ in size.
        OSError: The dataset cannot be written; no partial dataset is left.
    """
    root = Path(root)
    if all((root / kind / split).is_dir() for kind in ('images', 'labels')
           for split in SPLITS):
        return root  # the folder gets its name only when it is complete
    if root.exists():
        raise RuntimeError(f'{root} exists and is not the dataset of nuclei; '
                           'move or remove it (nothing in it was changed)')
    wheel = HISTOLYTICS.fetch(cache)
    image = _read_image(wheel, IMAGE)
    mask = read_mask(read_member(wheel, MASK))
    with replacing(root) as folder:
        _write_tiles(folder, image, mask,
                     lambda i: SPLITS[i % HELD_OUT == HELD_OUT - 1])
    return root


def prepare_stroma(root: str | Path, cache: str | Path) -> Path:
    """Make the dataset of the second image, one split, if it does not exist.

    Args:
        root: Folder of the dataset, with ``images/test`` and ``labels/test``.
        cache: Folder of the downloaded wheel.

    Returns:
        ``root``.

    Raises:
        ImportError: pyarrow, which reads the polygons, is not installed.
        RuntimeError: The image cannot be downloaded, or ``root`` is another
            folder.
        ValueError: A polygon has an unknown class.
        OSError: The dataset cannot be written; no partial dataset is left.
    """
    root = Path(root)
    if all((root / kind / 'test').is_dir() for kind in ('images', 'labels')):
        return root
    if root.exists():
        raise RuntimeError(f'{root} exists and is not the second image of '
                           'nuclei; move or remove it (nothing in it was changed)')
    wheel = HISTOLYTICS.fetch(cache)
    image = _read_image(wheel, STROMA_IMAGE)
    mask = read_polygons(read_member(wheel, STROMA_POLYGONS), image.shape[:2])
    with replacing(root) as folder:
        _write_tiles(folder, image, mask, lambda i: 'test')
    return root


def read_polygons(parquet: bytes, size: tuple[int, int]) -> np.ndarray:
    """Draw the polygons of a GeoParquet file as class numbers (H, W), uint8.

    Args:
        parquet: The file, with columns ``geometry`` (WKB) and ``class_name``.
        size: H and W.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: The columns are missing, or a class is unknown.
    """
    import pyarrow
    import shapely
    from pyarrow.parquet import read_table
    table = read_table(pyarrow.BufferReader(parquet))
    missing = {'geometry', 'class_name'} - set(table.column_names)
    if missing:
        raise ValueError('the polygons must have geometry and class_name, got '
                         f'{table.column_names}')
    names = table['class_name'].to_pylist()
    unknown = set(names) - set(CLASSES)
    if unknown:
        raise ValueError(f'class_name must be one of {CLASSES}, got '
                         f'{sorted(unknown)}')
    mask = np.zeros(size, np.uint8)
    shapes = shapely.from_wkb(table['geometry'].to_pylist())
    for shape, name in zip(shapes, names):
        for part in getattr(shape, 'geoms', [shape]):
            # Coordinates count from the corner of the first pixel. The first
            # image has both mask and polygons, and they agree best this way.
            rings = [np.rint(np.array(ring.coords) - 0.5).astype(np.int32)
                     for ring in (part.exterior, *part.interiors)]
            cv2.fillPoly(mask, rings, CLASSES.index(name))
    return mask


def _read_image(wheel: Path, name: str) -> np.ndarray:
    return cv2.imdecode(
        np.frombuffer(read_member(wheel, name), np.uint8), cv2.IMREAD_COLOR)


def _write_tiles(folder: Path, image: np.ndarray, mask: np.ndarray,
                 split_of: Callable[[int], str]) -> None:
    """Cut image and mask into tiles; ``split_of`` maps tile number to split."""
    if image.shape[:2] != mask.shape:
        raise ValueError('image and mask must have one size, got '
                         f'{image.shape[:2]} and {mask.shape}')
    for i, tile in enumerate(tile_grid(*mask.shape[::-1], size=TILE)):
        for kind, pixels in (('images', image), ('labels', mask)):
            path = folder / kind / split_of(i) / (
                f'{tile.x0:04d}_{tile.y0:04d}.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            part = pixels[tile.y0:tile.y1, tile.x0:tile.x1]
            if not cv2.imwrite(str(path), part):
                raise OSError(f'cannot write {path.name}: is the disk full?')
