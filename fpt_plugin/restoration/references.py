"""Data set and transforms of images with references, for super-resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS

from ..layers.checks import check_positive_int
from ..openmmlab.registry import register
from .degradations import read_image


@register(DATASETS)
class ReferencePairs(BaseDataset):
    """Images and their references, from a list or from video frames.

    The reference of a video frame is an earlier frame of the same sequence.

    Args:
        ann_file: A text file with two paths per line, relative to the folder of the
            images: image, tab, reference. ``''``: use video frames.
        data_root: The folder of the images, or with
            ``data_prefix=dict(img_path=...)`` the one above it.
        distance: Number of frames between an image and its reference.
        sequences: Prefixes of file names; the frames with one prefix, sorted by
            name, are a sequence. None: all images are one sequence. The first
            frames, which have no frame ``distance`` earlier, take the one
            ``distance`` later, or the last.
        reference: One reference for all images, a path relative to ``data_root``,
            instead of earlier frames. ``''``: none.
        **kwargs: See mmengine's BaseDataset.

    Raises:
        FileNotFoundError: The folder, the list or a listed file does not exist.
        TypeError: ``distance`` is no int.
        ValueError: A line does not have two paths, a sequence has too few frames
            or none, or both a list and one reference are given.
    """

    def __init__(self, ann_file: str = '', data_root: str = '', distance: int = 1,
                 sequences: list[str] | None = None, reference: str = '',
                 **kwargs) -> None:
        self.distance = check_positive_int('distance', distance)
        self.sequences, self.reference = sequences, reference
        if ann_file and reference:
            raise ValueError('reference must be empty with ann_file, which lists the '
                             f'references, got {reference!r} and {ann_file!r}')
        super().__init__(ann_file=ann_file, data_root=str(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List images and references."""
        if 'img_path' not in self.data_prefix:
            raise ValueError('data_prefix must have the folder img_path, got '
                             f'{self.data_prefix}')
        root = Path(self.data_prefix['img_path'])
        if self.ann_file:
            return self._listed(root)
        if not root.is_dir():
            raise FileNotFoundError('data_root and data_prefix must name a folder of '
                                    f'images, got {root}, which is not there')
        fixed = self.reference and Path(self.data_root, self.reference)
        if fixed and not fixed.is_file():
            raise FileNotFoundError(f'reference must be a file, and {fixed} is not '
                                    'there')
        frames = sorted(path for path in root.iterdir()
                        if path.is_file() and not path.name.startswith('.'))
        found = []
        for start in self.sequences or ['']:
            paths = [path for path in frames if path.name.startswith(start)]
            least = 1 if fixed else self.distance + 1
            if len(paths) < least:
                raise ValueError(
                    f'a sequence must have at least {least} frames for '
                    f'distance={self.distance}, '
                    f'got {len(paths)} that begin with {start!r} in {root}')
            for number, path in enumerate(paths):
                other = number - self.distance
                if other < 0:
                    other = min(number + self.distance, len(paths) - 1)
                found.append((path, fixed or paths[other]))
        return [dict(img_path=str(a), ref_path=str(b)) for a, b in found]

    def _listed(self, root: Path) -> list[dict]:
        found = []
        for line in Path(self.ann_file).read_text(encoding='utf-8').splitlines():
            if not line.strip():
                continue
            paths = [Path(root, part) for part in line.split('\t')]
            if len(paths) != 2:
                raise ValueError(f'a line of {self.ann_file} must have two paths with '
                                 f'a tabulator between them, got {line!r}')
            for path in paths:
                if not path.is_file():
                    raise FileNotFoundError(f'{path}, in {self.ann_file}, is not there')
            found.append(dict(img_path=str(paths[0]), ref_path=str(paths[1])))
        return found


@register(TRANSFORMS)
class LoadReference(BaseTransform):
    """Load the reference of an image, ``ref_img``."""

    def transform(self, results: dict) -> dict:
        """Load ``ref_path``.

        Raises:
            ValueError: It cannot be read.
        """
        results['ref_img'] = read_image(results['ref_path'])
        return results


@register(TRANSFORMS)
class CropWithReference(BaseTransform):
    """Crop a random part of an image and the same part of its reference.

    Frames of a video have similar content there. A crop beyond the reference's
    border is moved inside. An image without a reference is only cropped.

    Args:
        size: Side of the crop in pixels.
        margin: Additional pixels of the reference's crop on each side.

    Raises:
        TypeError: An argument is no int.
        ValueError: ``size`` is below 1 or ``margin`` below 0.
    """

    def __init__(self, size: int, margin: int = 0) -> None:
        self.size = check_positive_int('size', size)
        if isinstance(margin, bool) or not isinstance(margin, int):
            raise TypeError(f'margin must be an int, got {margin!r}')
        if margin < 0:
            raise ValueError(f'margin must not be negative, got {margin}')
        self.margin = margin

    def transform(self, results: dict) -> dict:
        """Crop ``img`` and, where it exists, ``ref_img``.

        Raises:
            ValueError: An image is smaller than the crop.
        """
        image, reference = results['img'], results.get('ref_img')
        ref_size = self.size + 2 * self.margin
        for name, picture, side in (('images', image, self.size),
                                    ('references', reference, ref_size)):
            if picture is not None and min(picture.shape[:2]) < side:
                raise ValueError(
                    f'{name} must have sides of at least {side}, got '
                    f'{picture.shape[:2]} in {results.get("img_path", "an image")}')
        corner = [np.random.randint(side - self.size + 1) for side in image.shape[:2]]
        results['img'] = _crop(image, corner, self.size)
        results['img_shape'] = results['img'].shape[:2]
        if reference is not None:
            ref_corner = [min(max(0, first - self.margin), side - ref_size)
                          for first, side in zip(corner, reference.shape[:2])]
            results['ref_img'] = _crop(reference, ref_corner, ref_size)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, margin={self.margin})'


def _crop(image: np.ndarray, corner: list[int], side: int) -> np.ndarray:
    top, left = corner
    return image[top:top + side, left:left + side]
