"""The datasets and metrics that a config names, as the hosts understand them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS

from ...openmmlab.registry import lookup


def datasets_of(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """Datasets of a split without what is wrapped around them, and their keys."""
    yield from _unwrapped(cfg.get(f'{split}_dataloader'), f'{split}_dataloader')


def _unwrapped(dataset: object, key: str) -> Iterator[tuple[str, dict]]:
    if not isinstance(dataset, dict):
        return  # not of the hosts: several loaders, or one that is built
    if isinstance(dataset.get('dataset'), dict):
        yield from _unwrapped(dataset['dataset'], f'{key}.dataset')
    elif isinstance(dataset.get('datasets'), (list, tuple)):
        for i, part in enumerate(dataset['datasets']):
            yield from _unwrapped(part, f'{key}.datasets.{i}')
    elif not key.endswith('_dataloader'):
        yield key, dataset


def metrics_of(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """Metrics of a split, and their key."""
    key = f'{split}_evaluator'
    metrics = cfg.get(key) or []
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        if isinstance(metric, dict):
            yield key, metric


def is_remote(settings: dict) -> bool:
    """Whether files are reached through another backend than the disk."""
    args = settings.get('backend_args') or {}
    return args.get('backend', 'local') not in ('local', 'disk')


def join(root: str, path: str) -> str:
    """Join as the datasets of the hosts do: an absolute path stays."""
    return str(Path(root, path)) if '://' not in root + path else root + path


def local_file(settings: dict, name: str = 'ann_file') -> str | None:
    """The path of a file that settings name; None where none is on the disk."""
    path = settings.get(name)
    if not isinstance(path, str) or not path or is_remote(settings):
        return None
    path = join(settings.get('data_root') or '', path)
    return path if Path(path).is_file() else None


def dataset_class(scope: str, dataset: dict) -> type | None:
    """The class of a dataset; None where the host does not know it."""
    cls = dataset.get('type')
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            cls = lookup(registry, cls)
    return cls if inspect.isclass(cls) else None


def metainfo_of(scope: str, dataset: dict) -> dict:
    """What a dataset says of its classes; empty where it is not known.

    As mmengine puts it together from the class, the config and files; a class of
    the user's may choose it when it is made.
    """
    cls = dataset_class(scope, dataset)
    load = getattr(cls, '_load_metainfo', None)
    try:
        if load is not None and _makes_itself(cls):
            return _build_lazily(scope, dataset).metainfo
        return load(dataset.get('metainfo')) if load else {}
    except Exception:
        return {}  # the host says what is wrong


def _makes_itself(cls: type) -> bool:
    """Whether the constructor of a dataset is not one of the libraries."""
    owner = next(base for base in cls.__mro__ if '__init__' in vars(base))
    return owner.__module__.partition('.')[0] not in ('mmdet', 'mmseg', 'mmengine')


def _build_lazily(scope: str, dataset: dict):
    """A dataset that has read nothing yet."""
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.build(dict(dataset, lazy_init=True))


def class_names(scope: str, dataset: dict) -> Sequence[str] | None:
    """The names of a dataset's classes; None where they are not known."""
    return metainfo_of(scope, dataset).get('classes')


def unscoped_type(settings: dict) -> str:
    """The type of a config without its scope; also of one that is a class."""
    kind = settings.get('type')
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]
