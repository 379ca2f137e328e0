"""A segmentor's labels are looked at before it learns or is judged by them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from ..openmmlab.registry import register


@register(HOOKS)
class SegLabelCheckHook(Hook):
    """Refuses label maps with values that are no class of the segmentor.

    mmseg's loss meets them with an index error that names no file, on CUDA with
    an assertion in a kernel; its IoUMetric leaves such pixels out of the ground
    truth and says nothing. tools/train.py and tools/test.py add this hook to
    every segmentor; elsewhere it is
    ``custom_hooks=[dict(type='fpt_plugin.SegLabelCheckHook')]``.

    Args:
        ignore_index: The label of pixels that do not count; None: what the
            decode head ignores, 255 in mmseg.

    Raises:
        ValueError: Before the iteration that would use the labels.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the labels of a batch to train on."""
        self._check(runner, runner.train_dataloader, data_batch)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the labels of a batch to validate on."""
        self._check(runner, runner.val_dataloader, data_batch)

    def before_test_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the labels of a batch to test on."""
        self._check(runner, runner.test_dataloader, data_batch)

    def _check(self, runner, dataloader, batch) -> None:
        samples = batch.get('data_samples') if isinstance(batch, dict) else None
        if not samples:
            return
        head = _decode_head(runner.model)
        classes = getattr(head, 'num_classes', None) or len(
            dataloader.dataset.metainfo['classes'])
        if getattr(head, 'out_channels', None) == 1:
            classes = 2  # one channel tells 1 from 0
        ignored = self.ignore_index
        if ignored is None:
            ignored = getattr(head, 'ignore_index', 255)
        for sample in _flat(samples):
            labels = getattr(sample, 'gt_sem_seg', None)
            if labels is not None:
                _check_labels(labels.data, classes, ignored,
                              getattr(sample, 'seg_map_path', None))


def _decode_head(model: nn.Module) -> nn.Module | None:
    """The head that predicts, the last one of a cascade; None without one."""
    while is_model_wrapper(model) or not hasattr(model, 'decode_head'):
        if not isinstance(getattr(model, 'module', None), nn.Module):
            return None
        model = model.module  # DDP, or test-time augmentation
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def _flat(samples: Sequence) -> list:
    """Samples, also those of several augmented views."""
    if isinstance(samples[0], (list, tuple)):
        return [sample for views in samples for sample in views]
    return list(samples)


def _check_labels(labels: torch.Tensor, classes: int, ignored: int,
                  path: str | None) -> None:
    counted = labels[labels != ignored]
    # One pass where all is well, as it is nearly always.
    if not counted.numel() or (0 <= counted.min() and counted.max() < classes):
        return
    outside = counted[(counted < 0) | (counted >= classes)].unique().tolist()
    raise ValueError(
        f'the label map {path or "of a sample"} must hold labels from 0 to '
        f'{classes - 1}, the classes of the decode head, or {ignored}, which '
        f'is ignored, got {outside}. Cityscapes: train on *_labelTrainIds.png, '
        "which mmseg's tools/dataset_converters/cityscapes.py writes. A data set "
        'whose 0 is no class, as ADE20K: reduce_zero_label=True. Your own: '
        "num_classes of the heads, or the dataset's metainfo, must count every "
        'label')
