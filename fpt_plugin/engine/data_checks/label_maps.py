"""Check a segmentor's images and label maps before anything is built.

mmseg crops, scales or broadcasts label maps of three channels, of another size
than their image or transposed, and trains on them without an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS

from ...openmmlab.empty_datasets import why_nothing_is_listed
from ...openmmlab.registry import lookup
from .class_names import check_is_sequence
from .datasets import class_names, dataset_class, datasets_of, is_remote
from .image_sizes import evenly_spaced, loaded_size
from .problems import Problem

# Number of label maps whose size is compared, and that are decoded, at the start
# of a run.
NUM_SIZES, NUM_DECODED = 64, 8
IGNORED = 255


def check_label_maps(cfg: Config, split: str,
                     every: bool = False) -> Iterator[Problem]:
    """Check a split's list of samples, and an evenly spaced sample of label maps.

    Args:
        cfg: A config of mmseg.
        split: ``'train'``, ``'val'`` or ``'test'``.
        every: Whether to check all label maps.
    """
    if cfg.default_scope != 'mmseg':
        return
    for key, settings in datasets_of(cfg, split):
        yield from check_is_sequence(
            key, class_names(cfg.default_scope, settings))
        dataset, samples = (None, None) if is_remote(settings) else _list(settings)
        if dataset is None:
            continue
        if not samples:
            yield Problem(key, f'{type(dataset).__name__} has no samples: '
                          f'{why_nothing_is_listed(dataset)}')
            continue
        load = _loader(settings)
        if load is not None and all(labels for _, labels in samples):
            # A user's transforms may make labels from any loaded file.
            fatal = not _has_other_transforms(settings)
            for problem in _check_maps(key, samples, dataset, load, every):
                yield replace(problem, fatal=problem.fatal and fatal)


def _list(settings: dict) -> tuple:
    """Return a dataset and its paths of images and label maps.

    Both are None if it cannot be built; mmseg then reports the error.
    """
    cls = dataset_class('mmseg', settings)
    if not hasattr(cls, 'load_data_list') or not hasattr(cls, 'get_label_map'):
        return None, None
    base = dataset_class('mmseg', dict(type='mmseg.BaseSegDataset'))
    try:
        with DATASETS.switch_scope_and_registry('mmseg') as registry:
            dataset = registry.build(dict(settings, lazy_init=True, pipeline=[]))
        if base is not None and cls.load_data_list is base.load_data_list:
            return dataset, list(_listed_paths(dataset))
        return dataset, [(sample['img_path'], sample.get('seg_map_path'))
                         for sample in dataset.load_data_list()]
    except Exception:
        return None, None


def _listed_paths(dataset) -> Iterator[tuple[str, str | None]]:
    """List images and label maps like BaseSegDataset, ten times as fast."""
    images = dataset.data_prefix.get('img_path')
    labels = dataset.data_prefix.get('seg_map_path')
    suffix = dataset.img_suffix
    if dataset.ann_file and not os.path.isdir(dataset.ann_file):
        with open(dataset.ann_file, encoding='utf-8') as file:
            names = [line.strip() for line in file]
    else:
        names = sorted(
            os.path.relpath(folder, images) + f'/{name[:-len(suffix)]}'
            if folder != images else name[:-len(suffix)]
            for folder, _, files in os.walk(images, followlinks=True)
            for name in files
            if name.endswith(suffix) and not name.startswith('.'))
    for name in names:
        yield os.path.join(images, name + suffix), None if labels is None else \
            os.path.join(labels, name + dataset.seg_map_suffix)


def _loader(settings: dict) -> dict | None:
    """Return the LoadAnnotations step of a pipeline, or None."""
    for step in settings.get('pipeline') or ():
        if isinstance(step, dict) and str(step.get('type')).rpartition('.')[2] \
                .strip("'>") == 'LoadAnnotations':
            return step
    return None


def _has_other_transforms(settings: dict) -> bool:
    with TRANSFORMS.switch_scope_and_registry('mmseg') as registry:
        classes = [lookup(registry, step.get('type')) for step in
                   settings.get('pipeline') or () if isinstance(step, dict)]
    return any(getattr(cls, '__module__', '').partition('.')[0] not in (
        'mmseg', 'mmcv') for cls in classes)


def _check_maps(key: str, samples: list, dataset, load: dict,
                every: bool) -> Iterator[Problem]:
    chosen = samples if every else evenly_spaced(samples, NUM_SIZES)
    missing, sizes = [], []
    for image, labels in (map(Path, sample) for sample in chosen):
        if not labels.is_file():
            missing.append(labels)
            continue
        given, expected = loaded_size(labels), loaded_size(image)
        if None not in (given, expected) and given != expected:
            sizes.append((labels, given, expected))
    of = f'of {len(chosen)} label maps' + ('' if len(chosen) == len(samples)
                                           else ' that were checked')
    if missing:
        yield Problem(
            key, f'{len(missing)} {of} are not there, such as {missing[0]}: do '
            'img_suffix and seg_map_suffix leave the same names?')
    if sizes:
        path, given, expected = sizes[0]
        hint = ' (transposed)' if given == expected[::-1] else ''
        yield Problem(
            key, f'{len(sizes)} {of} have another size than their images, such as '
            f'{path}: height and width are {given}, of the image {expected}{hint}')
    yield from _check_labels(
        key, chosen if every else evenly_spaced(chosen, NUM_DECODED), dataset, load)


def _check_labels(key: str, samples: list, dataset, load: dict) -> Iterator[Problem]:
    seen: set[int] = set()
    backend = load.get('imdecode_backend', 'pillow')
    for _, path in (map(Path, sample) for sample in samples):
        try:
            labels = mmcv.imfrombytes(
                path.read_bytes(), flag='unchanged', backend=backend).squeeze()
        except Exception:
            continue  # loading it in training reports the file
        fault = _fault(labels)
        if fault:
            yield Problem(key, f'the label map {path} {fault}')
            return
        counts = np.bincount(labels.astype(np.uint8).ravel())
        seen |= set(np.flatnonzero(counts).tolist())
    yield from _check_missing_classes(key, seen, dataset, len(samples))


def _fault(labels: np.ndarray) -> str | None:
    """Return why an array is no label map for mmseg, which reads 8 bits of it."""
    if labels.ndim != 2:
        return (f'must have one channel, got an array of shape {labels.shape}: '
                'store class numbers, not colours (a palette image is valid)')
    # mmseg converts -1 and 65535 to 255, which is ignored.
    if labels.dtype != bool and (labels.min() < 0 or labels.max() > 255) and (
            labels.dtype.kind == 'f' or
            set(labels[(labels < 0) | (labels > 255)] % 256) != {IGNORED}):
        return (f'must hold numbers from 0 to 255, got {labels.min()} to '
                f'{labels.max()}, of which mmseg keeps the last 8 bits')
    if labels.dtype.kind == 'f' and (labels != labels.round()).any():
        return 'must hold whole numbers, got fractions'
    return None


def _check_missing_classes(key: str, raw: set[int], dataset,
                           count: int) -> Iterator[Problem]:
    """Warn if a class never occurs while 255 does, which may stand for it."""
    classes = dataset.metainfo.get('classes') or ()
    seen, ignored = set(), False
    for label in raw:
        label = mapped_label(label, dataset.reduce_zero_label, dataset.label_map)
        ignored |= label == IGNORED
        seen |= {label} - {IGNORED}
    text = missing_class_message(seen, ignored, len(classes), dataset.reduce_zero_label)
    if text:
        yield Problem(key, f'in {count} label maps {text}', fatal=False)


def mapped_label(label: int, reduce_zero_label: bool,
                 label_map: dict | None) -> int:
    """Map a value of a file to a label like mmseg's LoadAnnotations."""
    if reduce_zero_label:
        label = {0: 255, 255: 255}.get(label, label - 1)
    return (label_map or {}).get(label, label)


def missing_class_message(seen: set[int], ignored: bool, classes: int,
               reduce_zero_label: bool = False) -> str | None:
    """Return a warning if 255, which is ignored, may stand for a class.

    The usual case are masks of 0 and 255. Many data sets ignore some pixels, and
    rare classes may be missing in a few label maps. So there is a warning only
    if at most one class occurs, or all but one of up to four.

    Args:
        seen: Labels that occurred.
        ignored: Whether ignored pixels occurred.
        classes: Number of classes.
        reduce_zero_label: Whether 0 in the files is ignored too.
    """
    missing = [c for c in range(classes) if c not in seen]
    few = len(seen & set(range(classes))) <= 1 or (
        len(missing) == 1 and classes <= 4)
    if not (ignored and missing and few and classes > 1):
        return None
    solution = 'Set reduce_zero_label=False if 0 is a class' if reduce_zero_label \
        else 'Store masks of 0 and 255 as 0 and 1'
    return (f'the labels {missing if len(missing) < 9 else "of most classes"} never '
            'occur, while pixels of 255, which are ignored, do: these classes would '
            f'not be learnt, and the metrics would omit them. {solution}')
