"""Check the annotation files of mmdet's CocoDataset and CocoMetric.

Datasets that read their files in another way (VOC, LVIS, Objects365, ODVG, or a
subclass that overrides load_data_list) are not checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmengine.config import Config

from .annotation_files import read_annotations
from .class_names import check_class_names
from .coco_annotations import check_annotations
from .datasets import (
    class_names,
    dataset_class,
    datasets_of,
    is_remote,
    join,
    local_file,
    metrics_of,
    unscoped_type,
)
from .image_sizes import check_image_sizes
from .problems import Problem


def check_coco_datasets(cfg: Config, split: str, whole: bool = False,
                        seen: set | None = None) -> Iterator[Problem]:
    """Compare datasets and metrics of a split with their annotation files.

    Args:
        cfg: A config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        whole: Whether to read large files completely and check all images.
        seen: Checks that were made already; new ones are added.
    """
    seen = set() if seen is None else seen
    names = None
    # A metric that only writes results needs no annotations, and one without a
    # file uses those of the dataset.
    metrics = [(key, local_file(m), 'segm' in (m.get('metric') or ()))
               for key, m in metrics_of(cfg, split)
               if unscoped_type(m) == 'CocoMetric' and not m.get('format_only')]
    evaluated = {os.path.realpath(path) for _, path, _ in metrics if path}
    segm = {os.path.realpath(path) for _, path, masks in metrics if path and masks}
    for key, dataset in datasets_of(cfg, split):
        if not _reads_coco(cfg.default_scope, dataset):
            continue
        names = class_names(cfg.default_scope, dataset)
        path = local_file(dataset)
        if path:
            real = os.path.realpath(path)
            masked = real in segm or split == 'train' and _loads_masks(dataset)
            yield from _check_file(f'{key}.ann_file', path, names, real in evaluated,
                                   split == 'train', masked, dataset, whole, seen)
    for key, path, masked in metrics:
        if path and names and split != 'train':
            yield from _check_file(f'{key}.ann_file', path, names, True, False,
                                   masked, None, whole, seen)


def _check_file(key: str, path: str, names, evaluated: bool, trained: bool,
                masked: bool, dataset: dict | None, whole: bool,
                seen: set) -> Iterator[Problem]:
    masks = names if names and masked else ()
    check = (path, str(names), evaluated, masked)
    if check in seen:
        return
    seen.add(check)
    try:
        file = read_annotations(path, whole)
    except (OSError, ValueError) as error:
        yield Problem(key, str(error))
        return
    unlabelled = file.whole and not file.annotations and not evaluated
    if names and not isinstance(names, str) and (
            file.categories or not unlabelled):
        yield from check_class_names(key, list(names), path, file.categories,
                                     evaluated)
    if _is_panoptic(file.annotations):
        return
    if file.whole and not file.images:
        yield Problem(key, f'{path} has no images')
    if (trained or evaluated) and file.whole and not file.annotations:
        # Training may use images without objects as background or unlabelled.
        filters = (dataset or {}).get('filter_cfg') or {}
        yield Problem(key, f'{path} has no annotations',
                      fatal=evaluated or bool(filters.get('filter_empty_gt')))
    yield from check_annotations(key, file, evaluated, masks)
    folder = ((dataset or {}).get('data_prefix') or {}).get('img')
    if isinstance(folder, str) and not is_remote(dataset) \
            and 'LoadImageFromFile' in str(dataset.get('pipeline')):
        folder = join(dataset.get('data_root') or '', folder)
        if '://' not in folder:
            yield from check_image_sizes(key, file, folder, every=whole)


def _reads_coco(scope: str, dataset: dict) -> bool:
    """Return whether a dataset reads its file like CocoDataset."""
    cls = dataset_class(scope, dataset)
    coco = dataset_class('mmdet', dict(type='mmdet.CocoDataset')) \
        if scope == 'mmdet' else None
    return None not in (cls, coco) and issubclass(cls, coco) \
        and cls.load_data_list is coco.load_data_list \
        and cls.parse_data_info in (coco.parse_data_info,
                                    getattr(_panoptic(), 'parse_data_info', None))


def _panoptic() -> type | None:
    return dataset_class('mmdet', dict(type='mmdet.CocoPanopticDataset'))


def _is_panoptic(annotations: list | None) -> bool:
    return bool(annotations) and 'segments_info' in annotations[0]


def _loads_masks(dataset: dict) -> bool:
    return any(isinstance(step, dict) and step.get('with_mask')
               for step in dataset.get('pipeline') or ())
