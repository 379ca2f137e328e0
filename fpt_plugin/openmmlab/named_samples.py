"""Add file names to the errors of broken images and label maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from multiprocessing.context import get_spawning_popen

from mmengine.dataset import BaseDataset

# Keys of a sample's paths in datasets of mmdet and mmseg.
PATHS = ('img_path', 'seg_map_path')


def name_broken_samples() -> None:
    """Make mmengine's datasets name the sample that failed.

    Without it, an empty file, a label map that cannot be decoded, or a transform
    that does not fit raises an error of OpenCV or numpy that names no file.
    Forked data loader workers inherit the fix; spawned workers import the package
    when they unpickle the dataset.
    """
    if getattr(BaseDataset.prepare_data, 'names_samples', False):
        return
    original = BaseDataset.prepare_data

    @wraps(original)
    def prepare_data(self, idx):
        try:
            return original(self, idx)
        except Exception as error:
            paths = _paths(self.get_data_info(idx))
            if not paths or any(path in str(error) for path in paths):
                raise  # the message has the file name already
            # One type for all: an OpenCV error cannot be built from a text.
            raise RuntimeError(
                f'the sample {" with ".join(paths)} cannot be used: is the file '
                f'whole? {type(error).__name__}: {error}') from error

    prepare_data.names_samples = True
    BaseDataset.prepare_data = prepare_data
    _import_in_spawned_workers()


def _import_in_spawned_workers() -> None:
    """Make spawned processes import this module when they unpickle a dataset."""
    original = BaseDataset.__reduce_ex__

    @wraps(original)
    def __reduce_ex__(self, protocol):
        reduced = original(self, protocol)
        if get_spawning_popen() is None or not isinstance(reduced, tuple):
            return reduced  # copied, or pickled into a file
        constructor, arguments, *rest = reduced
        return _reconstruct, (constructor, arguments), *rest

    BaseDataset.__reduce_ex__ = __reduce_ex__


def _reconstruct(constructor: Callable, arguments: tuple) -> object:
    """Unpickle a dataset; importing this function has applied the fixes."""
    return constructor(*arguments)


def _paths(sample: object) -> list[str]:
    if not isinstance(sample, Mapping):
        return []
    return [str(sample[key]) for key in PATHS if sample.get(key)]
