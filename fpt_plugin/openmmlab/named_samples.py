"""Errors of images and label maps get the names of the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from multiprocessing.context import get_spawning_popen

from mmengine.dataset import BaseDataset

# Where the hosts' datasets keep the paths of a sample.
PATHS = ('img_path', 'seg_map_path')


def name_broken_samples() -> None:
    """Let mmengine's datasets say which sample it was that failed.

    An empty file, a label map that cannot be decoded or a transform that does
    not fit end in errors of OpenCV or of numpy that name no file. Processes
    that are forked to load data inherit it; those that are spawned import the
    package with the data set that they are given.
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
                raise  # it names the file by itself
            # One type of error: OpenCV's cannot be made from a text.
            raise RuntimeError(
                f'the sample {" with ".join(paths)} cannot be used: is the file '
                f'whole? {type(error).__name__}: {error}') from error

    prepare_data.names_samples = True
    BaseDataset.prepare_data = prepare_data
    _bring_the_package_along()


def _bring_the_package_along() -> None:
    """Let a data set that is sent to a spawned process import this module there."""
    original = BaseDataset.__reduce_ex__

    @wraps(original)
    def __reduce_ex__(self, protocol):
        reduced = original(self, protocol)
        if get_spawning_popen() is None or not isinstance(reduced, tuple):
            return reduced  # a copy, or one for a file
        make, arguments, *rest = reduced
        return _make, (make, arguments), *rest

    BaseDataset.__reduce_ex__ = __reduce_ex__


def _make(make: Callable, arguments: tuple) -> object:
    """Begin to unpickle a data set; this module's import has mended the host."""
    return make(*arguments)


def _paths(sample: object) -> list[str]:
    if not isinstance(sample, Mapping):
        return []
    return [str(sample[key]) for key in PATHS if sample.get(key)]
