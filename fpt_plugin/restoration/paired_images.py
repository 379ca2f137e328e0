"""Data sets of degraded and clean image files."""

from __future__ import annotations

from pathlib import Path

from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS

from ..openmmlab.registry import register
from .degradations import TASKS, check_tasks, checked_image, read_image


@register(DATASETS)
class PairedImages(BaseDataset):
    """Two folders with degraded and clean images of the same names.

    Args:
        task: The degradation, see :class:`~fpt_plugin.Degrade`.
        data_root: Parent of the folders.
        data_prefix: ``img_path``, the folder of degraded images, and
            ``gt_path``, that of clean ones. The suffixes of a pair may differ.
        **kwargs: See mmengine's BaseDataset.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: The task is unknown, a folder is empty, or an image has no
            partner.
    """

    def __init__(self, task: str, data_root: str = '',
                 data_prefix: dict = dict(img_path='input', gt_path='target'),
                 **kwargs) -> None:
        self.task, = check_tasks(task)
        super().__init__(data_root=str(data_root), data_prefix=dict(data_prefix),
                         **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the pairs by name."""
        folders = [Path(self.data_prefix[key]) for key in ('img_path', 'gt_path')]
        degraded, clean = map(_images, folders)
        unpaired = sorted(degraded.keys() ^ clean.keys())
        if unpaired:
            raise ValueError(
                f'each image of {folders[0]} must have a partner of the same name in '
                f'{folders[1]}, and {len(unpaired)} have none: {unpaired[:3]}')
        return [dict(img_path=str(degraded[name]), gt_path=str(clean[name]),
                     task=self.task) for name in sorted(degraded)]


def _images(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their names without suffix.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It is empty, or two files differ only in the suffix.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} must be a folder of images, and is not '
                                'there')
    paths = [path for path in sorted(folder.iterdir())
             if path.is_file() and not path.name.startswith('.')]
    found = {path.stem: path for path in paths}
    if not found or len(found) < len(paths):
        raise ValueError(f'{folder} must hold images whose names differ, got '
                         f'{[path.name for path in paths[:3]]}')
    return found


@register(TRANSFORMS)
class LoadCleanImage(BaseTransform):
    """Load the clean image of a pair, ``gt_img``, after LoadImageFromFile."""

    def transform(self, results: dict) -> dict:
        """Load ``gt_path``.

        Raises:
            ValueError: An image is broken, or their sizes do not fit the task.
        """
        path = results['gt_path']
        clean = read_image(path)
        image = checked_image(results['img'], results['img_path'])
        scale = TASKS[results['task']].scale
        if clean.shape[:2] != tuple(scale * side for side in image.shape[:2]):
            raise ValueError(
                f'the clean image must be {scale} times the size of the degraded one '
                f'for {results["task"]}, got {clean.shape[:2]} in {path} and '
                f'{image.shape[:2]} in {results["img_path"]}')
        results['gt_img'] = clean
        return results
