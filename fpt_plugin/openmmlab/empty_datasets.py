"""Explain why a dataset has no samples."""

from __future__ import annotations

from collections import Counter
from functools import wraps
from pathlib import Path

from mmengine.dataset import BaseDataset


def name_empty_datasets() -> None:
    """Make mmengine's datasets explain why no sample is left.

    Without it, every cause ends in numpy's ``need at least one array to
    concatenate``.
    """
    original = BaseDataset._serialize_data
    if getattr(original, 'explains_empty', False):
        return

    @wraps(original)
    def _serialize_data(self):
        if not self.data_list:
            raise ValueError(f'{type(self).__name__} has no samples: '
                             f'{why_empty(self)}')
        return original(self)

    _serialize_data.explains_empty = True
    BaseDataset._serialize_data = _serialize_data


def why_empty(dataset: BaseDataset) -> str:
    """Return the cause of an empty dataset: its files, a filter, or indices."""
    try:
        dataset.data_list = dataset.load_data_list()
        listed = len(dataset.data_list)
        if not listed:
            return why_nothing_is_listed(dataset)
        left = len(dataset.filter_data())
    except Exception as error:  # a dataset that cannot be loaded twice
        return f'the cause is unknown ({type(error).__name__}: {error})'
    if left:
        return f'indices={dataset._indices} leaves none of {left}'
    text = f'filter_cfg={dataset.filter_cfg} leaves none of the {listed} in ' \
        f'{dataset.ann_file}'
    classes = dataset.metainfo.get('classes')
    if getattr(dataset, 'cat_ids', None) == [] or not _has_objects(dataset):
        text += f'; no object is of the classes {_some(classes)}: set the names ' \
            "of the annotations in metainfo=dict(classes=(...))"
    return text


def why_nothing_is_listed(dataset: BaseDataset) -> str:
    """Describe what is missing in the dataset's folders and annotation file."""
    ann_file = getattr(dataset, 'ann_file', '')
    if ann_file and Path(ann_file).is_file():
        return f'{ann_file} lists none'
    suffix = getattr(dataset, 'img_suffix', None)
    for name, folder in dataset.data_prefix.items():
        if not isinstance(folder, str) or name.startswith('seg'):
            continue
        subject = f'the folder of data_prefix.{name}, {folder},'
        if not Path(folder).is_dir():
            return f'{subject} does not exist'
        found = Counter(p.suffix for p in Path(folder).rglob('*') if p.is_file())
        if not found:
            return f'{subject} is empty'
        if suffix is not None and name.startswith('img'):
            kinds = ', '.join(f'{count} of {kind or "no suffix"}'
                              for kind, count in found.most_common(3))
            return (f'no file in {folder} ends with img_suffix={suffix!r}; it has '
                    f'{kinds}: set img_suffix of the dataset')
    return f'its load_data_list returns none, with ann_file={ann_file!r} and ' \
        f'data_prefix={dict(dataset.data_prefix)}'


def _has_objects(dataset: BaseDataset) -> bool:
    """Return whether any sample has an object, or samples have no instances key."""
    return any(sample.get('instances', True) for sample in dataset.data_list
               if isinstance(sample, dict))


def _some(names) -> str:
    names = list(map(repr, names or ()))
    return ', '.join(names[:6]) + (f' ... ({len(names)})' if len(names) > 6 else '')
