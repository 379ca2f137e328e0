"""Find the datasets and metrics of a config, like mmdet and mmseg do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS

from ...openmmlab.registry import lookup


def datasets_of(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """Find the innermost datasets of a split, and their config keys."""
    yield from _unwrapped(cfg.get(f'{split}_dataloader'), f'{split}_dataloader')


def _unwrapped(dataset: object, key: str) -> Iterator[tuple[str, dict]]:
    if not isinstance(dataset, dict):
        return  # several loaders, or a loader that is already built
    if isinstance(dataset.get('dataset'), dict):
        yield from _unwrapped(dataset['dataset'], f'{key}.dataset')
    elif isinstance(dataset.get('datasets'), (list, tuple)):
        for i, part in enumerate(dataset['datasets']):
            yield from _unwrapped(part, f'{key}.datasets.{i}')
    elif not key.endswith('_dataloader'):
        yield key, dataset


def metrics_of(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """Find the metrics of a split, and their config key."""
    key = f'{split}_evaluator'
    metrics = cfg.get(key) or []
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        if isinstance(metric, dict):
            yield key, metric


def is_remote(settings: dict) -> bool:
    """Return whether files are read through another backend than the disk."""
    args = settings.get('backend_args') or {}
    return args.get('backend', 'local') not in ('local', 'disk')


def join(root: str, path: str) -> str:
    """Join like the libraries' datasets: an absolute path is not changed."""
    return str(Path(root, path)) if '://' not in root + path else root + path


def local_file(settings: dict, name: str = 'ann_file') -> str | None:
    """Return the path of a file in settings; None if it is not on the disk."""
    path = settings.get(name)
    if not isinstance(path, str) or not path or is_remote(settings):
        return None
    path = join(settings.get('data_root') or '', path)
    return path if Path(path).is_file() else None


def dataset_class(scope: str, dataset: dict) -> type | None:
    """Return the class of a dataset; None if it is not registered."""
    cls = dataset.get('type')
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            cls = lookup(registry, cls)
    return cls if inspect.isclass(cls) else None


def metainfo_of(scope: str, dataset: dict) -> dict:
    """Return the metainfo of a dataset; empty if it cannot be determined.

    mmengine merges it from the class, the config and files; the constructor of a
    user's class may set it too.
    """
    cls = dataset_class(scope, dataset)
    load = getattr(cls, '_load_metainfo', None)
    try:
        if load is not None and _has_own_constructor(cls):
            return _build_lazily(scope, dataset).metainfo
        return load(dataset.get('metainfo')) if load else {}
    except Exception:
        return {}  # the library reports the error when it builds the dataset


def _has_own_constructor(cls: type) -> bool:
    """Return whether the constructor of a dataset is a user's."""
    owner = next(base for base in cls.__mro__ if '__init__' in vars(base))
    return owner.__module__.partition('.')[0] not in ('mmdet', 'mmseg', 'mmengine')


def _build_lazily(scope: str, dataset: dict):
    """Build a dataset that reads no files."""
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.build(dict(dataset, lazy_init=True))


def class_names(scope: str, dataset: dict) -> Sequence[str] | None:
    """Return the names of a dataset's classes; None if they are not known."""
    return metainfo_of(scope, dataset).get('classes')


def unscoped_type(settings: dict) -> str:
    """Return the type of a config (a name or a class) without its scope."""
    kind = settings.get('type')
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]
