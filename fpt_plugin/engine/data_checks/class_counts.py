"""Compare the number of classes of the heads with that of the data.

A head with fewer classes than the data silently treats the last ones as
background; a head with more raises an IndexError at the first validation.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config
from torch import nn

from .class_names import some_names
from .datasets import dataset_class, datasets_of, metainfo_of
from .problems import Problem

# Heads with another task than the classes of the data: objectness (RPN), stuff
# (fused semantic heads), edges (STDC), comparison with texts (SAN).
OTHER_TASKS = ('RPN', 'FusedSemanticHead', 'SCNetSemanticHead', 'STDCHead',
               'SideAdapterCLIPHead')
# Names of the heads that predict the classes. LIBRARY_HEADS counts only for
# classes of mmdet and mmseg; a user's head of these names may have another task.
MAIN_HEADS = ('bbox_head', 'mask_head', 'roi_head', 'decode_head')
LIBRARY_HEADS = ('auxiliary_head', 'semantic_head', 'segm_head', 'panoptic_head',
                 'panoptic_fusion_head', 'mask_iou_head', 'point_head', 'grid_head',
                 'glbctx_head', 'kernel_generate_head', 'kernel_update_head')
# Base classes of the checked datasets. Others, such as those of videos, may list
# more classes than they train.
DATASETS = dict(mmdet='BaseDetDataset', mmseg='BaseSegDataset')


def check_class_counts(model: nn.Module, cfg: Config,
                       *splits: str) -> Iterator[Problem]:
    """Compare a model's heads with the datasets of some splits."""
    heads = list(_heads(model))
    seen = set()
    for split in splits:
        for key, dataset in datasets_of(cfg, split):
            if not _is_checked(cfg.default_scope, dataset):
                continue
            metainfo = metainfo_of(cfg.default_scope, dataset)
            classes = metainfo.get('classes')
            if not classes or isinstance(classes, str):
                continue
            for name, head in heads:
                if head.num_classes in _counts(metainfo) or _is_binary(
                        head, len(classes)) or (name, len(classes)) in seen:
                    continue
                seen.add((name, len(classes)))
                yield Problem(
                    key, f'the dataset has {len(classes)} classes '
                    f'({some_names(classes, 4)}), but {name} '
                    f'({type(head).__name__}) has num_classes={head.num_classes}: '
                    'set num_classes of every head to the number of classes, or '
                    'metainfo=dict(classes=(...)) of the datasets to those of the '
                    'head')


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find names and modules of the heads that predict the data's classes."""
    texts = tuple(f'{name}.' if name else '' for name, module in
                  model.named_modules() if hasattr(module, 'language_model'))
    for name, module in model.named_modules():
        if name.startswith(texts):
            continue  # GLIP and similar models compare with texts
        if not _predicts_classes(name, type(module)) or 'rpn' in name \
                or any(other in type(module).__name__ for other in OTHER_TASKS):
            continue
        if isinstance(getattr(module, 'num_classes', None), int):
            yield name, module


def _predicts_classes(name: str, cls: type) -> bool:
    """Return whether the innermost head in a dotted name predicts classes."""
    heads = [part for part in name.split('.') if part.endswith(('head', 'heads'))]
    of_library = cls.__module__.partition('.')[0] in DATASETS
    names = MAIN_HEADS + LIBRARY_HEADS if of_library else MAIN_HEADS
    return bool(heads) and heads[-1] in names


def _counts(metainfo: dict) -> set[int]:
    """Return the valid numbers of classes of a head.

    A panoptic data set also allows its number of things, its number of stuff
    classes, and stuff plus one class for all things.
    """
    things, stuff = (metainfo.get(f'{kind}_classes') for kind in ('thing', 'stuff'))
    return {len(metainfo['classes'])} | ({len(things)} if things else set()) | (
        {len(stuff), len(stuff) + 1} if stuff else set())


def _is_checked(scope: str, dataset: dict) -> bool:
    if scope not in DATASETS:
        return False  # pre-training: images without labels
    cls, base = (dataset_class(scope, settings) for settings in (
        dataset, dict(type=f'{scope}.{DATASETS[scope]}')))
    return None not in (cls, base) and issubclass(cls, base)


def _is_binary(head: nn.Module, classes: int) -> bool:
    """Return whether a head separates two classes by one channel."""
    return getattr(head, 'out_channels', None) == 1 and classes <= 2
