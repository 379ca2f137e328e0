"""Small images with a label each, or with a label for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from torch import Tensor

from ...pretraining.images import SUFFIXES, UnlabelledImages
from ...restoration.degradations import read_image

IGNORED = -1
HELD_OUT = 5  # every so many images of a single folder


@dataclass
class Labelled:
    """Images and their labels.

    Attributes:
        images: (I, 3, H, W), uint8, channels as in the files.
        labels: (I, 1) of image labels, (I, H * W) of label maps; -1 is ignored.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def part(self, chosen: slice | Tensor) -> Labelled:
        """Some of the images."""
        return Labelled(self.images[chosen], self.labels[chosen])


def read_data(folders: Sequence[str | Path], maps: Sequence[str | Path] | None,
              size: tuple[int, int], ignored: Sequence[int] = (255, )
              ) -> tuple[Labelled, Labelled, list[str]]:
    """Read images for training and for evaluation.

    Args:
        folders: A folder for each; of a single one every fifth image is held out.
            Without ``maps`` their folders are the classes.
        maps: A folder of label maps for each of ``folders``, under the names of the
            images, with any ending.
        size: Height and width to which images and label maps are resized.
        ignored: Values of label maps that are no class.

    Returns:
        Both parts, and the names of the classes; of label maps their numbers.

    Raises:
        FileNotFoundError: A folder or a label map is not there.
        ValueError: There are no images, label maps are no such, or the parts have
            other classes.
    """
    if maps is not None and len(maps) != len(folders):
        raise ValueError('--label-maps must name a folder for each folder of '
                         f'--images, {len(folders)}, got {len(maps)}')
    if maps is None:
        classes = _class_folders(folders[0])
        parts = [_read_classes(folder, classes, size) for folder in folders]
    else:
        parts = [_read_maps(*both, size, ignored) for both in zip(folders, maps)]
        classes = [str(i) for i in range(int(parts[0].labels.max()) + 1)]
    if len(parts) == 1:
        held_out = torch.arange(len(parts[0])) % HELD_OUT == HELD_OUT - 1
        parts = [parts[0].part(~held_out), parts[0].part(held_out)]
    training, evaluation = parts
    if not len(evaluation) or not (evaluation.labels >= 0).any() or not (
            training.labels >= 0).any():
        raise ValueError('--images must have labelled images for training and for '
                         f'evaluation, got {len(training)} and {len(evaluation)}')
    if len(classes) < 2:
        raise ValueError(f'there must be at least two classes, got {classes}')
    if evaluation.labels.max() >= len(classes):
        raise ValueError(
            f'label maps for evaluation have the class {int(evaluation.labels.max())}, '
            f'those for training 0..{len(classes) - 1}; --ignore takes values that '
            'are no class')
    return training, evaluation, classes


def _class_folders(folder: str | Path) -> list[str]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'--images must be folders, and {folder} is not there')
    found = sorted(path.name for path in Path(folder).iterdir()
                   if path.is_dir() and not path.name.startswith('.'))
    if not found:
        raise ValueError(f'{folder} must hold a folder for each class, or --label-maps '
                         'must name label maps')
    return found


def _read_classes(folder: str | Path, classes: list[str],
                  size: tuple[int, int]) -> Labelled:
    others = sorted(set(_class_folders(folder)) - set(classes))
    if others:
        raise ValueError(f'the classes of {folder} must be among {classes}, got '
                         f'{others}')
    images, labels = [], []
    for number, name in enumerate(classes):
        if (Path(folder) / name).is_dir():
            for path in _paths(Path(folder) / name):
                images.append(_read_image(path, size))
                labels.append([number])
    return Labelled(torch.stack(images), torch.tensor(labels))


def _read_maps(folder: str | Path, maps: str | Path, size: tuple[int, int],
               ignored: Sequence[int]) -> Labelled:
    images, labels = [], []
    for path in _paths(Path(folder)):
        found = sorted((Path(maps) / path.relative_to(folder)).parent.glob(
            f'{path.stem}.*'))
        if not found:
            raise FileNotFoundError(f'{path} must have a label map of its name in '
                                    f'{maps}')
        images.append(_read_image(path, size))
        labels.append(_read_map(found[0], size, ignored))
    return Labelled(torch.stack(images), torch.stack(labels))


def _paths(folder: Path) -> list[Path]:
    """List the images of a folder, sorted."""
    found = UnlabelledImages(str(folder), suffixes=SUFFIXES)
    return [Path(found.get_data_info(i)['img_path']) for i in range(len(found))]


def _read_image(path: Path, size: tuple[int, int]) -> Tensor:
    image = mmcv.imresize(read_image(str(path)), size[::-1], interpolation='area')
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def _read_map(path: Path, size: tuple[int, int], ignored: Sequence[int]) -> Tensor:
    """Take the label in the middle of each pixel: (H * W,)."""
    labels = mmcv.imread(str(path), flag='unchanged')
    if labels is None or labels.ndim != 2:
        shape = None if labels is None else labels.shape
        raise ValueError(f'{path} must be a label map of one channel, got {shape}')
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int)
                     for new, old in zip(size, labels.shape))
    labels = labels[rows[:, None], columns].astype(np.int64)
    labels[np.isin(labels, ignored)] = IGNORED
    return torch.from_numpy(labels).flatten()
