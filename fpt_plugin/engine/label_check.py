"""Check the label maps of a segmentor before they are used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from ..openmmlab.registry import register
from .data_checks.label_maps import missing_class_message

MAX_MAPS = 50  # number of label maps before missing classes are reported


@register(HOOKS)
class SegLabelCheckHook(Hook):
    """Rejects label maps that do not fit the segmentor or their images.

    For a value that is no class, mmseg's loss raises an index error without a
    file name, or on CUDA an assertion in a kernel; its IoUMetric silently drops
    such pixels. Maps of three channels or of another size than their image may
    be broadcast. The hook also warns if a class never occurs in the first label
    maps while ignored pixels do: masks of 0 and 255 give an mIoU of 100.
    tools/train.py and tools/test.py add this hook to every segmentor; elsewhere
    write ``custom_hooks=[dict(type='fpt_plugin.SegLabelCheckHook')]``.

    Args:
        ignore_index: The label of ignored pixels; None: that of the decode head,
            255 in mmseg.

    Raises:
        ValueError: Before an iteration with wrong labels; before the first
            iteration if the head has one channel and a softmax.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index
        self._statistics: dict[str, _LabelStatistics] = {}

    def before_train(self, runner) -> None:
        """Check the losses of the heads."""
        for module in runner.model.modules():
            check_one_channel(module)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Check the labels of a training batch."""
        self._check(runner, 'train', data_batch)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Check the labels of a validation batch."""
        self._check(runner, 'val', data_batch)

    def before_test_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Check the labels of a test batch."""
        self._check(runner, 'test', data_batch)

    def after_train(self, runner) -> None:
        """Report missing classes of a short training."""
        self._report('train')

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Report missing classes of a small validation set."""
        self._report('val')

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Report missing classes of a small test set."""
        self._report('test')

    def _check(self, runner, split: str, batch) -> None:
        samples = batch.get('data_samples') if isinstance(batch, dict) else None
        if not samples:
            return
        dataset = getattr(runner, f'{split}_dataloader').dataset
        head = _decode_head(runner.model)
        names = dataset.metainfo.get('classes') or ()
        classes = getattr(head, 'num_classes', None) or len(names)
        if getattr(head, 'out_channels', None) == 1 \
                and not _softmax_losses(head):
            classes = 2  # one channel separates 1 from 0
        if split != 'train' and names:  # the classes that metrics count
            classes = min(classes, len(names))
        if not classes:
            return  # the number of classes is not known
        ignored = self.ignore_index
        if ignored is None:
            ignored = getattr(head, 'ignore_index', 255)
        statistics = self._statistics.setdefault(split, _LabelStatistics(
            classes, bool(dataset.metainfo.get('reduce_zero_label'))))
        for sample, image in zip(*_flatten(samples, batch.get('inputs'))):
            labels = getattr(sample, 'gt_sem_seg', None)
            if labels is not None:
                path = getattr(sample, 'seg_map_path', None)
                sizes = [image.shape[-2:]] if image is not None else []
                if split != 'train':  # labels have the original size there
                    sizes += [getattr(sample, 'ori_shape', None)]
                _check_shape(labels.data, sizes, path,
                             getattr(head, 'out_channels', None))
                _check_labels(labels.data, classes, ignored, path)
                statistics.add(labels.data, ignored)
        if statistics.count >= MAX_MAPS:
            self._report(split)

    def _report(self, split: str) -> None:
        if split in self._statistics:
            self._statistics[split].report(split)


class _LabelStatistics:
    """The labels that occurred so far, until they are reported once."""

    def __init__(self, classes: int, reduce_zero_label: bool) -> None:
        self.classes, self.reduce_zero_label = classes, reduce_zero_label
        self.labels: set[int] = set()
        self.count, self.ignored, self.done = 0, False, False

    def add(self, labels: torch.Tensor, ignored: int) -> None:
        if self.done:
            return
        found = set(labels.unique().tolist())
        self.ignored |= ignored in found
        self.labels |= found - {ignored}
        self.count += 1

    def report(self, split: str) -> None:
        """Warn once about missing classes, if 255 may stand for one of them."""
        if self.done:
            return
        self.done = True
        text = missing_class_message(self.labels, self.ignored, self.classes,
                                     self.reduce_zero_label)
        if text:
            warnings.warn(f'in the first {self.count} label maps of {split} {text}',
                          stacklevel=2)


def check_one_channel(head: nn.Module) -> None:
    """Reject a head of one channel with a softmax; other heads pass.

    Raises:
        ValueError: The message names the losses and the alternatives.
    """
    if getattr(head, 'out_channels', None) == 1 and _softmax_losses(head):
        raise ValueError(
            f'{type(head).__name__} has one channel and {_softmax_losses(head)} with '
            'a softmax, which is always 1 for one channel, so that nothing is '
            'learnt. For an object and its background: num_classes=2 '
            'and a softmax, or num_classes=2, out_channels=1 and use_sigmoid=True; '
            'the labels are 0 and 1')


def _softmax_losses(head: nn.Module) -> list[str]:
    """Return the losses of a head that take a softmax over its channels."""
    losses = getattr(head, 'loss_decode', None)
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    return [type(loss).__name__ for loss in losses
            if getattr(loss, 'use_sigmoid', None) is False
            and not getattr(loss, 'use_mask', False)
            and getattr(loss, 'activate', True)
            or type(loss).__name__ == 'TverskyLoss'
            or getattr(getattr(loss, 'cls_criterion', None), '__name__', '')
            == 'lovasz_softmax']


def _decode_head(model: nn.Module) -> nn.Module | None:
    """Return the head that predicts (the last of a cascade), or None."""
    while is_model_wrapper(model) or not hasattr(model, 'decode_head'):
        if not isinstance(getattr(model, 'module', None), nn.Module):
            return None
        model = model.module  # DDP, or test-time augmentation
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def _flatten(samples: Sequence, images: Sequence | None) -> tuple[list, list]:
    """Return one list of samples and one of images, also for augmented views."""
    if isinstance(samples[0], (list, tuple)):
        samples = [sample for views in samples for sample in views]
        images = [image for views in images or () for image in views]
    images = list(images if images is not None else ())
    # Sizes are compared only if each sample has one image.
    return list(samples), images if len(images) == len(samples) else [
        None] * len(samples)


def _check_shape(labels: torch.Tensor, sizes: Sequence, path: str | None,
                 channels: int | None) -> None:
    """Require (1, H, W) of the image's size, or (classes, H, W)."""
    sizes = [tuple(size[:2]) for size in sizes if size is not None]
    if labels.ndim == 3 and len(labels) in (1, channels) and (
            not sizes or tuple(labels.shape[1:]) in sizes):
        return
    size = ' or '.join(map(str, dict.fromkeys(sizes)))
    raise ValueError(
        f'the label map {path or "of a sample"} must have one channel and the height '
        f'and width of its image, {size}, got the shape {tuple(labels.shape)}: store '
        'class numbers, not colours, in the size of the image')


def _check_labels(labels: torch.Tensor, classes: int, ignored: int,
                  path: str | None) -> None:
    counted = labels[labels != ignored]
    # Fast path: labels are nearly always valid.
    if not counted.numel() or (0 <= counted.min() and counted.max() < classes):
        return
    outside = counted[(counted < 0) | (counted >= classes)].unique().tolist()
    raise ValueError(
        f'the label map {path or "of a sample"} must hold labels from 0 to '
        f'{classes - 1}, the classes of the decode head and the data, or {ignored}, '
        f'which is ignored, got {outside}. Cityscapes: train on *_labelTrainIds.png, '
        "which mmseg's tools/dataset_converters/cityscapes.py writes. If 0 is no "
        'class, as in ADE20K: reduce_zero_label=True. Your own data: num_classes of '
        "the heads and the dataset's metainfo must include every label")
