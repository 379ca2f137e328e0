"""Check that the paths of a config exist, before anything is built.

The libraries fail late: mmseg when a worker opens the first label map, mmdet's
Cityscapes metric after a whole validation.
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
    """Require the folders and files of a config's datasets and metrics.

    Only local paths are checked, not those of a ``backend_args``.

    Args:
        cfg: A config of mmdet or mmseg.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        FileNotFoundError: A path is missing; the message has the config key, the
            path and the solution.
    """
    for key, dataset in datasets_of(cfg, split):
        if not is_remote(dataset):
            _check_dataset(cfg.default_scope, key, dataset)
    for key, metric in metrics_of(cfg, split):
        if not is_remote(metric):
            for name in ('ann_file', 'seg_prefix'):
                _require(cfg.default_scope, f'{key}.{name}', metric.get(name),
                         metric)


def _check_dataset(scope: str, key: str, dataset: dict) -> None:
    root = dataset.get('data_root') or ''
    annotations = dataset.get('ann_file')
    if not annotations and not dataset.get('data_prefix'):
        _require(scope, f'{key}.data_root', root, dataset)
    if isinstance(annotations, str) and annotations:
        _require(scope, f'{key}.ann_file', join(root, annotations), dataset)
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        labels = name.startswith('seg')
        # Prediction does not need label maps.
        if not isinstance(prefix, str) or labels and not _loads_labels(dataset):
            continue
        folder = join(root, prefix)
        _require(scope, f'{key}.data_prefix.{name}', folder, dataset)
        suffix = _label_suffix(scope, dataset) if labels else None
        # Like the datasets, follow links.
        if suffix and '://' not in folder and not any(list_dir_or_file(
                folder, list_dir=False, suffix=suffix, recursive=True)):
            raise FileNotFoundError(
                f'{key}.data_prefix.{name}: no file *{suffix} is in {folder}. '
                f'{_solution(scope, dataset, "labels")}')


def _loads_labels(dataset: dict) -> bool:
    return 'Annotation' in str(dataset.get('pipeline'))


def _require(scope: str, key: str, path, settings: dict) -> None:
    """Require that a local path exists."""
    if not isinstance(path, str) or not path or '://' in path \
            or Path(path).exists():
        return
    raise FileNotFoundError(
        f'{key}: {path} is not there. {_solution(scope, settings, key)}')


def _label_suffix(scope: str, dataset: dict) -> str | None:
    """Return the suffix of label maps, from the config or the class."""
    if 'seg_map_suffix' in dataset:
        return dataset['seg_map_suffix']
    cls = dataset_class(scope, dataset)
    if cls is None:
        return None  # the library reports the unknown dataset
    parameter = inspect.signature(cls).parameters.get('seg_map_suffix')
    return parameter.default if parameter else None


def _solution(scope: str, settings: dict, missing: str) -> str:
    if unscoped_type(settings) in CITYSCAPES:
        return _cityscapes_solution(scope, missing)
    return ('Put or link the data there, or name their folder: --cfg-options '
            'train_dataloader.dataset.data_root=FOLDER, and the same for val '
            'and test')


def _cityscapes_solution(scope: str, missing: str) -> str:
    """Name the archive to unpack, or the library's converter to run."""
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
