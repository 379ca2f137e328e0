"""The number of classes of the heads against that of the data.

A head of fewer classes than the data takes the last ones for background and says
nothing; one of more ends in an IndexError at the first validation.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config
from torch import nn

from .class_names import some_names
from .datasets import dataset_class, datasets_of, metainfo_of
from .problems import Problem

# Heads with classes of their own: RPNs tell objects from the rest, fused semantic
# heads count stuff, STDC's learns edges, SAN's compares with texts.
OTHERS = ('RPN', 'FusedSemanticHead', 'SCNetSemanticHead', 'STDCHead',
          'SideAdapterCLIPHead')
# Where the hosts keep what predicts the classes. Heads of another name, and
# classes of the user's among the auxiliary ones, may have another task.
MAIN = ('bbox_head', 'mask_head', 'roi_head', 'decode_head')
MORE = ('auxiliary_head', 'semantic_head', 'segm_head', 'panoptic_head',
        'panoptic_fusion_head', 'mask_iou_head', 'point_head', 'grid_head',
        'glbctx_head', 'kernel_generate_head', 'kernel_update_head')
# Others, such as those of videos, list more classes than they are trained on.
DATASETS = dict(mmdet='BaseDetDataset', mmseg='BaseSegDataset')


def check_class_counts(model: nn.Module, cfg: Config,
                       *splits: str) -> Iterator[Problem]:
    """Compare a model's heads with the datasets of some splits."""
    heads = list(_heads(model))
    seen = set()
    for split in splits:
        for key, dataset in datasets_of(cfg, split):
            if not _is_judged(cfg.default_scope, dataset):
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
                    "metainfo=dict(classes=(...)) of the datasets to the head's")


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Parts that predict the data's classes, and their names."""
    texts = tuple(f'{name}.' if name else '' for name, module in
                  model.named_modules() if hasattr(module, 'language_model'))
    for name, module in model.named_modules():
        if name.startswith(texts):
            continue  # GLIP and the like compare with texts
        if not _predicts_classes(name, type(module)) or 'rpn' in name \
                or any(other in type(module).__name__ for other in OTHERS):
            continue
        if isinstance(getattr(module, 'num_classes', None), int):
            yield name, module


def _predicts_classes(name: str, cls: type) -> bool:
    """Whether the innermost head of a dotted name has the task of the data."""
    heads = [part for part in name.split('.') if part.endswith(('head', 'heads'))]
    of_hosts = cls.__module__.partition('.')[0] in DATASETS
    return bool(heads) and heads[-1] in (MAIN + MORE if of_hosts else MAIN)


def _counts(metainfo: dict) -> set[int]:
    """How many classes a head may count: all, or a panoptic data set's things.

    Its head for stuff takes things for one class more.
    """
    things, stuff = (metainfo.get(f'{kind}_classes') for kind in ('thing', 'stuff'))
    return {len(metainfo['classes'])} | ({len(things)} if things else set()) | (
        {len(stuff), len(stuff) + 1} if stuff else set())


def _is_judged(scope: str, dataset: dict) -> bool:
    if scope not in DATASETS:
        return False  # of images without labels
    cls, base = (dataset_class(scope, settings) for settings in (
        dataset, dict(type=f'{scope}.{DATASETS[scope]}')))
    return None not in (cls, base) and issubclass(cls, base)


def _is_binary(head: nn.Module, classes: int) -> bool:
    """Whether one channel of a segmentor tells the second class from the first."""
    return getattr(head, 'out_channels', None) == 1 and classes <= 2
