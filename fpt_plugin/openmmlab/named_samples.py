"""Errors of images and label maps get the names of the files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps

from mmengine.dataset import BaseDataset

# Where the hosts' datasets keep the paths of a sample.
PATHS = ('img_path', 'seg_map_path')


def name_broken_samples() -> None:
    """Let mmengine's datasets say which sample it was that failed.

    An empty file, a label map that cannot be decoded or a transform that does
    not fit end in errors of OpenCV or of numpy that name no file. Processes
    that are forked to load data inherit it.
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


def _paths(sample: object) -> list[str]:
    if not isinstance(sample, Mapping):
        return []
    return [str(sample[key]) for key in PATHS if sample.get(key)]
