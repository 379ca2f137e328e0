"""Whether a config's data are where it says, asked before anything is built.

Hosts find out late: mmseg when the first label map is opened in a worker,
mmdet's Cityscapes metric after a whole validation.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import list_dir_or_file

from .datasets import (
    dataset_class,
    datasets_of,
    is_remote,
    join,
    metrics_of,
    unscoped_type,
)

CITYSCAPES = ('CityscapesDataset', 'CityScapesMetric')


def check_paths(cfg: Config, split: str) -> None:
    """Look for the folders and files that datasets and metrics of a config name.

    Local paths alone; what a ``backend_args`` reaches is left to the host.

    Args:
        cfg: A config of either host.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        FileNotFoundError: Names the key of the config, the path, and the cure.
    """
    for key, dataset in datasets_of(cfg, split):
        if not is_remote(dataset):
            _check_dataset(cfg.default_scope, key, dataset)
    for key, metric in metrics_of(cfg, split):
        if not is_remote(metric):
            for name in ('ann_file', 'seg_prefix'):
                _look(cfg.default_scope, f'{key}.{name}', metric.get(name),
                      metric)


def _check_dataset(scope: str, key: str, dataset: dict) -> None:
    root = dataset.get('data_root') or ''
    annotations = dataset.get('ann_file')
    if not annotations and not dataset.get('data_prefix'):
        _look(scope, f'{key}.data_root', root, dataset)
    if isinstance(annotations, str) and annotations:
        _look(scope, f'{key}.ann_file', join(root, annotations), dataset)
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        labels = name.startswith('seg')
        # Without them one can still predict.
        if not isinstance(prefix, str) or labels and not _loads_labels(dataset):
            continue
        folder = join(root, prefix)
        _look(scope, f'{key}.data_prefix.{name}', folder, dataset)
        suffix = _label_suffix(scope, dataset) if labels else None
        # As the datasets list them: through links, too.
        if suffix and '://' not in folder and not any(list_dir_or_file(
                folder, list_dir=False, suffix=suffix, recursive=True)):
            raise FileNotFoundError(
                f'{key}.data_prefix.{name}: no file *{suffix} is in {folder}. '
                f'{_cure(scope, dataset, "labels")}')


def _loads_labels(dataset: dict) -> bool:
    return 'Annotation' in str(dataset.get('pipeline'))


def _look(scope: str, key: str, path, settings: dict) -> None:
    """Something local of this name must be there."""
    if not isinstance(path, str) or not path or '://' in path \
            or Path(path).exists():
        return
    raise FileNotFoundError(
        f'{key}: {path} is not there. {_cure(scope, settings, key)}')


def _label_suffix(scope: str, dataset: dict) -> str | None:
    """The end of the label maps' names, by the config or by the class."""
    if 'seg_map_suffix' in dataset:
        return dataset['seg_map_suffix']
    cls = dataset_class(scope, dataset)
    if cls is None:
        return None  # the host says what is wrong with it
    parameter = inspect.signature(cls).parameters.get('seg_map_suffix')
    return parameter.default if parameter else None


def _cure(scope: str, settings: dict, missing: str) -> str:
    if unscoped_type(settings) in CITYSCAPES:
        return _cityscapes_cure(scope, missing)
    return ('Put or link the data there, or name their folder: --cfg-options '
            'train_dataloader.dataset.data_root=FOLDER, and the same for val '
            'and test')


def _cityscapes_cure(scope: str, missing: str) -> str:
    """Which archive, and the host's own converter for what is made of it."""
    folder = Path(find_spec(scope).origin).parent / '.mim'
    converter = f'{folder}/tools/dataset_converters/cityscapes.py'
    if missing == 'labels':
        made = f'python {converter} data/cityscapes'
    elif missing.endswith('ann_file'):
        made = (f'python {converter} data/cityscapes '
                '--out-dir data/cityscapes/annotations')
    else:
        return ('Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip '
                'of cityscapes-dataset.com into data/cityscapes')
    return f'Make them: pip install cityscapesscripts && {made}'
