"""A data set without samples says why it has none."""

from __future__ import annotations

from collections import Counter
from functools import wraps
from pathlib import Path

from mmengine.dataset import BaseDataset


def name_empty_datasets() -> None:
    """Let mmengine's datasets say why no sample is left.

    Whatever the cause is, mmengine ends in numpy's ``need at least one array to
    concatenate``.
    """
    original = BaseDataset._serialize_data
    if getattr(original, 'names_causes', False):
        return

    @wraps(original)
    def _serialize_data(self):
        if not self.data_list:
            raise ValueError(f'{type(self).__name__} has no samples: '
                             f'{why_empty(self)}')
        return original(self)

    _serialize_data.names_causes = True
    BaseDataset._serialize_data = _serialize_data


def why_empty(dataset: BaseDataset) -> str:
    """What left a data set without samples: its files, a filter, or indices."""
    try:
        dataset.data_list = dataset.load_data_list()
        listed = len(dataset.data_list)
        if not listed:
            return why_nothing_is_listed(dataset)
        left = len(dataset.filter_data())
    except Exception as error:  # one that cannot be loaded twice
        return f'the cause cannot be told ({type(error).__name__}: {error})'
    if left:
        return f'indices={dataset._indices} leaves none of {left}'
    text = f'filter_cfg={dataset.filter_cfg} leaves none of {listed} that ' \
        f'{dataset.ann_file} lists'
    classes = dataset.metainfo.get('classes')
    if getattr(dataset, 'cat_ids', None) == [] or not _objects(dataset):
        text += f'; no object is of the classes {_some(classes)}: they must be ' \
            "named as in the annotations, by metainfo=dict(classes=(...))"
    return text


def why_nothing_is_listed(dataset: BaseDataset) -> str:
    """What folders and lists lack, as far as it can be told."""
    ann_file = getattr(dataset, 'ann_file', '')
    if ann_file and Path(ann_file).is_file():
        return f'{ann_file} lists none'
    suffix = getattr(dataset, 'img_suffix', None)
    for name, folder in dataset.data_prefix.items():
        if not isinstance(folder, str) or name.startswith('seg'):
            continue
        there = f'the folder of data_prefix.{name}, {folder},'
        if not Path(folder).is_dir():
            return f'{there} is not there'
        found = Counter(p.suffix for p in Path(folder).rglob('*') if p.is_file())
        if not found:
            return f'{there} is empty'
        if suffix is not None and name.startswith('img'):
            kinds = ', '.join(f'{count} of {kind or "no suffix"}'
                              for kind, count in found.most_common(3))
            return (f'no file in {folder} ends with img_suffix={suffix!r}; it has '
                    f'{kinds}: set img_suffix of the dataset')
    return f'its load_data_list gives none, with ann_file={ann_file!r} and ' \
        f'data_prefix={dict(dataset.data_prefix)}'


def _objects(dataset: BaseDataset) -> bool:
    """Whether any sample has an object; True where samples have no objects."""
    return any(sample.get('instances', True) for sample in dataset.data_list
               if isinstance(sample, dict))


def _some(names) -> str:
    names = list(map(repr, names or ()))
    return ', '.join(names[:6]) + (f' ... ({len(names)})' if len(names) > 6 else '')
