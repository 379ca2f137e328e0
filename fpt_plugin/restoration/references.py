"""Images with reference pictures, for super-resolution."""

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
    """Images and the pictures that they may take textures from.

    Either listed pairs, or the frames of video sequences, whose reference is a frame
    before.

    Args:
        ann_file: A text file with two paths below ``data_root`` a line, image and
            reference, with a tabulator between them. ``''``: frames.
        data_root: The folder of the images.
        distance: How many frames before an image its reference is.
        sequences: Frames whose names begin with one of these are a sequence each,
            sorted by name; None: all images are one. An image without a frame so
            far before it has the one so far behind it, or the last.
        **kwargs: See mmengine's BaseDataset.

    Raises:
        FileNotFoundError: The folder, the list or a file of it is not there.
        TypeError: ``distance`` is no int.
        ValueError: A line has not two paths, or a sequence has too few frames.
    """

    def __init__(self, ann_file: str = '', data_root: str = '', distance: int = 1,
                 sequences: list[str] | None = None, **kwargs) -> None:
        self.distance = check_positive_int('distance', distance)
        self.sequences = sequences
        super().__init__(ann_file=ann_file, data_root=str(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List images and references."""
        if self.ann_file:
            return self._listed()
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(f'data_root must be a folder of images, and {root} '
                                    'is not there')
        frames = sorted(path for path in root.iterdir()
                        if path.is_file() and not path.name.startswith('.'))
        found = []
        for start in self.sequences or ['']:
            paths = [path for path in frames if path.name.startswith(start)]
            if len(paths) <= self.distance:
                raise ValueError(
                    f'a sequence must have more than distance={self.distance} frames, '
                    f'got {len(paths)} that begin with {start!r} in {root}')
            for number, path in enumerate(paths):
                other = number - self.distance
                if other < 0:
                    other = min(number + self.distance, len(paths) - 1)
                found.append((path, paths[other]))
        return [dict(img_path=str(a), ref_path=str(b)) for a, b in found]

    def _listed(self) -> list[dict]:
        found = []
        for line in Path(self.ann_file).read_text(encoding='utf-8').splitlines():
            if not line.strip():
                continue
            paths = [Path(self.data_root, part) for part in line.split('\t')]
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
            ValueError: It is broken.
        """
        results['ref_img'] = read_image(results['ref_path'])
        return results


@register(TRANSFORMS)
class CropWithReference(BaseTransform):
    """Take a random part of an image and the same part of its reference.

    Frames of a video show nearly the same there. A part that does not fit into the
    reference is moved into it.

    Args:
        size: Side of the part in pixels.
        margin: Pixels that the reference's part is larger on each side, where it
            has them.

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
        """Crop ``img`` and ``ref_img``.

        Raises:
            ValueError: An image is smaller than the part.
        """
        image, reference = results['img'], results['ref_img']
        wanted = self.size + 2 * self.margin
        for picture, side in ((image, self.size), (reference, wanted)):
            if min(picture.shape[:2]) < side:
                raise ValueError(
                    f'images and references must have sides of at least {self.size} '
                    f'and {wanted}, got {image.shape[:2]} and {reference.shape[:2]} in '
                    f'{results.get("img_path", "an image")}')
        start = [np.random.randint(side - self.size + 1) for side in image.shape[:2]]
        first = [min(max(0, at - self.margin), side - wanted)
                 for at, side in zip(start, reference.shape[:2])]
        results['img'] = _part(image, start, self.size)
        results['ref_img'] = _part(reference, first, wanted)
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, margin={self.margin})'


def _part(image: np.ndarray, start: list[int], side: int) -> np.ndarray:
    top, left = start
    return image[top:top + side, left:left + side]
