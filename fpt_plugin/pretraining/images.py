"""Folders of images without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..openmmlab.registry import register

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@register(DATASETS)
class UnlabelledImages(BaseDataset):
    """All images of a folder, sorted by path; no annotations are read.

    Hidden files and folders, whose names begin with a dot, are skipped.

    Args:
        data_root: The folder.
        recursive: Whether to include subfolders. Links are followed; a folder with
            several names is read once.
        suffixes: File suffixes of images, in any case.
        data_prefix: ``dict(img_path='train')`` reads this subfolder only.
        **kwargs: ``pipeline``, ``indices`` and others of mmengine's BaseDataset, but
            not those for annotations.

    Raises:
        FileNotFoundError: The folder does not exist.
        TypeError: ``suffixes`` is a string.
        ValueError: It has no images, or an argument is for annotations.
    """

    def __init__(self,
                 data_root: str,
                 recursive: bool = True,
                 suffixes: Sequence[str] = SUFFIXES,
                 data_prefix: dict | None = None,
                 **kwargs) -> None:
        if isinstance(suffixes, str):
            raise TypeError(f'suffixes must be a list of suffixes, got {suffixes!r}')
        for name in ('ann_file', 'filter_cfg'):
            if kwargs.get(name):
                raise ValueError(f'{name} must not be set, because no annotations are '
                                 f'read, got {kwargs[name]!r}')
        prefix = dict(dict(img_path=''), **data_prefix or {})
        if set(prefix) != {'img_path'}:
            raise ValueError("data_prefix must have only the key 'img_path', got "
                             f'{data_prefix}')
        self.recursive = recursive
        self.suffixes = tuple(suffix.lower() for suffix in suffixes)
        super().__init__(data_root=str(data_root), data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images."""
        root = Path(self.data_prefix['img_path'])
        if not root.is_dir():
            reason = 'no folder' if root.exists() else 'not there'
            raise FileNotFoundError('data_root must be a folder of images, got '
                                    f'{root}, which is {reason}')
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


def _files(root: Path) -> Iterator[Path]:
    """Find all paths below a folder; follow links, but read each folder once.

    Links come last, so that a folder is found by its own path.
    """
    seen: set[Path] = set()
    folders, links = [root], []
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith('.'):
                (links if path.is_symlink() else folders).append(path)
            yield path
