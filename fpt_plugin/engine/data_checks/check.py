"""Run all checks of a config's data, at the start of a run and in the doctor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from mmengine.config import Config
from torch import nn

from .class_counts import check_class_counts
from .class_names import check_is_sequence
from .coco_datasets import check_coco_datasets
from .datasets import class_names, datasets_of
from .label_maps import check_label_maps
from .paths import check_paths
from .problems import Problem


def check_data(cfg: Config, *splits: str) -> None:
    """Reject data that would make a run fail or learn wrong labels.

    Only a part of large annotation files and folders is checked, so that a run
    starts within a second; :func:`inspect_data` checks everything.

    Args:
        cfg: A config of mmdet or mmseg.
        splits: ``'train'``, ``'val'``, ``'test'``; splits that the config does
            not have are skipped.

    Raises:
        FileNotFoundError: A file is missing; the message has the config key, the
            path and the solution.
        ValueError: The data are wrong; the message lists all problems.
    """
    for split in splits:
        check_paths(cfg, split)
    _report(_problems(cfg, splits, whole=False))


def check_model_classes(model: nn.Module, cfg: Config, *splits: str) -> None:
    """Reject heads whose number of classes differs from that of the datasets.

    The model of a FlexibleRunner is still a config here and is not checked.

    Raises:
        ValueError: The numbers differ; the message has the head and both.
    """
    if isinstance(model, nn.Module):
        _report(check_class_counts(model, cfg, *splits))


def inspect_data(cfg: Config, *splits: str) -> Iterator[Problem]:
    """Check all data of a config, however long it takes."""
    existing = []
    for split in splits:
        try:
            check_paths(cfg, split)
        except FileNotFoundError as error:
            where, _, text = str(error).partition(': ')
            yield Problem(where, text)
        else:
            existing.append(split)
    yield from _problems(cfg, existing, whole=True)


def _problems(cfg: Config, splits, whole: bool) -> Iterator[Problem]:
    seen: set = set()
    for split in splits:
        for key, dataset in datasets_of(cfg, split):
            if cfg.default_scope == 'mmdet':
                yield from check_is_sequence(
                    key, class_names(cfg.default_scope, dataset))
        yield from check_coco_datasets(cfg, split, whole, seen)
        yield from check_label_maps(cfg, split, whole)


def _report(problems: Iterator[Problem]) -> None:
    """Warn about minor problems, and raise one error for the fatal ones."""
    fatal = []
    for problem in dict.fromkeys(problems):
        if problem.fatal:
            fatal.append(str(problem))
        else:
            warnings.warn(str(problem), stacklevel=3)
    if fatal:
        raise ValueError('\n'.join(fatal))
