"""All checks of a config's data: at the start of a run, and by the doctor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from mmengine.config import Config
from torch import nn

from .annotated import check_annotated
from .class_counts import check_class_counts
from .class_names import check_is_sequence
from .datasets import class_names, datasets_of
from .label_maps import check_label_maps
from .paths import check_paths
from .problems import Problem


def check_data(cfg: Config, *splits: str) -> None:
    """Refuse data that a run would fail on or learn wrongly from.

    Large annotation files and folders are looked at in part, to start within a
    second; :func:`inspect_data` reads all of them.

    Args:
        cfg: A config of either host.
        splits: ``'train'``, ``'val'``, ``'test'``; one that the config does not
            have is skipped.

    Raises:
        FileNotFoundError: Names the key of the config, the path, and the cure.
        ValueError: Names what is wrong with the data.
    """
    for split in splits:
        check_paths(cfg, split)
    _report(_problems(cfg, splits, whole=False))


def check_model_classes(model: nn.Module, cfg: Config, *splits: str) -> None:
    """Refuse heads that count other classes than the datasets of some splits.

    The model of a FlexibleRunner is still a config here and is not looked at.

    Raises:
        ValueError: Names the head and both numbers.
    """
    if isinstance(model, nn.Module):
        _report(check_class_counts(model, cfg, *splits))


def inspect_data(cfg: Config, *splits: str) -> Iterator[Problem]:
    """Look at all data of a config, however long it takes."""
    there = []
    for split in splits:
        try:
            check_paths(cfg, split)
        except FileNotFoundError as error:
            where, _, text = str(error).partition(': ')
            yield Problem(where, text)
        else:
            there.append(split)
    yield from _problems(cfg, there, whole=True)


def _problems(cfg: Config, splits, whole: bool) -> Iterator[Problem]:
    seen: set = set()
    for split in splits:
        for key, dataset in datasets_of(cfg, split):
            if cfg.default_scope == 'mmdet':
                yield from check_is_sequence(
                    key, class_names(cfg.default_scope, dataset))
        yield from check_annotated(cfg, split, whole, seen)
        yield from check_label_maps(cfg, split, whole)


def _report(problems: Iterator[Problem]) -> None:
    """Warn about what does not hinder, and refuse the rest in one message."""
    fatal = []
    for problem in dict.fromkeys(problems):
        if problem.fatal:
            fatal.append(str(problem))
        else:
            warnings.warn(str(problem), stacklevel=3)
    if fatal:
        raise ValueError('\n'.join(fatal))
