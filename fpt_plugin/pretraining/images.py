"""Folders of images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..openmmlab.registry import register

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@register(DATASETS)
class UnlabelledImages(BaseDataset):
    """All images of a folder, sorted by path; no annotations are read.

    Args:
        data_root: The folder.
        recursive: Whether to include subfolders. Links are followed.
        suffixes: File suffixes of images, in any case.
        **kwargs: See mmengine's BaseDataset.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It has no images.
    """

    def __init__(self,
                 data_root: str,
                 recursive: bool = True,
                 suffixes: Sequence[str] = SUFFIXES,
                 **kwargs) -> None:
        self.recursive = recursive
        self.suffixes = tuple(suffix.lower() for suffix in suffixes)
        super().__init__(data_root=str(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images."""
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError('data_root must be a folder of images, got '
                                    f'{root}, which is not there')
        paths = _files(root) if self.recursive else root.iterdir()
        found = sorted(str(path) for path in paths
                       if path.suffix.lower() in self.suffixes and path.is_file()
                       and not path.name.startswith('.'))
        if not found:
            hint = '' if self.recursive else \
                ' itself; recursive=True includes its subfolders'
            raise ValueError('data_root must hold images that end with one of '
                             f'{self.suffixes}, and none is in {root}{hint}')
        return [dict(img_path=path) for path in found]

    def prepare_data(self, idx: int) -> object:
        """Load an image and run the pipeline.

        Raises:
            ValueError: The image is broken or too small; the message has its path.
        """
        try:
            return super().prepare_data(idx)
        except (AssertionError, RuntimeError) as error:
            path = self.get_data_info(idx)['img_path']
            raise ValueError(f'the image {path} cannot be used: {error}') from error


def _files(root: Path):
    """Find all paths below a folder; follow links, but read each folder once."""
    seen: set[Path] = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        for path in folder.iterdir():
            folders += [path] if path.is_dir() else []
            yield path
