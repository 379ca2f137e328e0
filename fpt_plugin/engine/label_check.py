"""A segmentor's labels are looked at before it learns or is judged by them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from ..openmmlab.registry import register
from .data_checks.label_maps import silent_255

LOOKED_AT = 50  # label maps, after which a class that never occurs is named



@register(HOOKS)
class SegLabelCheckHook(Hook):
    """Refuses label maps that do not fit the segmentor or their images.

    mmseg's loss meets values that are no class with an index error that names no
    file, on CUDA with an assertion in a kernel; its IoUMetric leaves such pixels
    out of the ground truth and says nothing. Maps of three channels or of another
    size than their image may be broadcast. After the first label maps a class
    that never occurs while ignored pixels do is warned about: masks of 0 and 255
    give an mIoU of 100. tools/train.py and tools/test.py add this hook to every
    segmentor; elsewhere it is
    ``custom_hooks=[dict(type='fpt_plugin.SegLabelCheckHook')]``.

    Args:
        ignore_index: The label of pixels that do not count; None: what the
            decode head ignores, 255 in mmseg.

    Raises:
        ValueError: Before the iteration that would use the labels; before the
            first one where the head has one channel and its loss is a softmax.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index
        self._seen: dict[str, _Seen] = {}

    def before_train(self, runner) -> None:
        """Look at the losses of the head."""
        for module in runner.model.modules():
            check_one_channel(module)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the labels of a batch to train on."""
        self._check(runner, 'train', data_batch)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the labels of a batch to validate on."""
        self._check(runner, 'val', data_batch)

    def before_test_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the labels of a batch to test on."""
        self._check(runner, 'test', data_batch)

    def after_train(self, runner) -> None:
        """Name a class that never occurred in a short training."""
        self._end('train')

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Name a class that never occurred in a small validation."""
        self._end('val')

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Name a class that never occurred in a small test."""
        self._end('test')

    def _check(self, runner, split: str, batch) -> None:
        samples = batch.get('data_samples') if isinstance(batch, dict) else None
        if not samples:
            return
        dataset = getattr(runner, f'{split}_dataloader').dataset
        head = _decode_head(runner.model)
        names = dataset.metainfo.get('classes') or ()
        classes = getattr(head, 'num_classes', None) or len(names)
        if getattr(head, 'out_channels', None) == 1 and not _softmaxes(head):
            classes = 2  # one channel tells 1 from 0
        if split != 'train' and names:  # what the metrics count
            classes = min(classes, len(names))
        if not classes:
            return  # neither head nor data say how many
        ignored = self.ignore_index
        if ignored is None:
            ignored = getattr(head, 'ignore_index', 255)
        seen = self._seen.setdefault(split, _Seen(
            classes, bool(dataset.metainfo.get('reduce_zero_label'))))
        for sample, image in zip(*_flat(samples, batch.get('inputs'))):
            labels = getattr(sample, 'gt_sem_seg', None)
            if labels is not None:
                path = getattr(sample, 'seg_map_path', None)
                sizes = [image.shape[-2:]] if image is not None else []
                if split != 'train':  # where labels are loaded in full size
                    sizes += [getattr(sample, 'ori_shape', None)]
                _check_shape(labels.data, sizes, path,
                             getattr(head, 'out_channels', None))
                _check_labels(labels.data, classes, ignored, path)
                seen.add(labels.data, ignored)
        if seen.count >= LOOKED_AT:
            self._end(split)

    def _end(self, split: str) -> None:
        if split in self._seen:
            self._seen[split].report(split)


class _Seen:
    """Labels that occurred, until it was looked whether all did."""

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
        """Say once what never occurred, if it is strange."""
        if self.done:
            return
        self.done = True
        text = silent_255(self.labels, self.ignored, self.classes,
                          self.reduce_zero_label)
        if text:
            warnings.warn(f'in the first {self.count} label maps of {split} {text}',
                          stacklevel=2)


def check_one_channel(head: nn.Module) -> None:
    """Refuse a softmax over the one channel of a head; others are left alone.

    Raises:
        ValueError: Names the losses, and what works instead.
    """
    if getattr(head, 'out_channels', None) == 1 and _softmaxes(head):
        raise ValueError(
            f'{type(head).__name__} has one channel and {_softmaxes(head)} with a '
            'softmax, which is 1 for one channel whatever the weights are, so that '
            'nothing is learnt. For an object and its background: num_classes=2 '
            'and a softmax, or num_classes=2, out_channels=1 and use_sigmoid=True; '
            'the labels are 0 and 1')


def _softmaxes(head: nn.Module) -> list[str]:
    """The losses of a head that take a softmax over its channels."""
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
    """The head that predicts, the last one of a cascade; None without one."""
    while is_model_wrapper(model) or not hasattr(model, 'decode_head'):
        if not isinstance(getattr(model, 'module', None), nn.Module):
            return None
        model = model.module  # DDP, or test-time augmentation
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def _flat(samples: Sequence, images: Sequence | None) -> tuple[list, list]:
    """Samples and their images, also of several augmented views."""
    if isinstance(samples[0], (list, tuple)):
        samples = [sample for views in samples for sample in views]
        images = [image for views in images or () for image in views]
    images = list(images if images is not None else ())
    # Images that do not belong to one sample each are not compared.
    return list(samples), images if len(images) == len(samples) else [
        None] * len(samples)


def _check_shape(labels: torch.Tensor, sizes: Sequence, path: str | None,
                 channels: int | None) -> None:
    """One channel, as large as the image, or a map for each class."""
    sizes = [tuple(size[:2]) for size in sizes if size is not None]
    if labels.ndim == 3 and len(labels) in (1, channels) and (
            not sizes or tuple(labels.shape[1:]) in sizes):
        return
    size = ' or '.join(map(str, dict.fromkeys(sizes)))
    raise ValueError(
        f'the label map {path or "of a sample"} must have one channel and the height '
        f'and width of its image, {size}, got the shape {tuple(labels.shape)}: write '
        'the numbers of classes, not their colours, in the size of the image')


def _check_labels(labels: torch.Tensor, classes: int, ignored: int,
                  path: str | None) -> None:
    counted = labels[labels != ignored]
    # One pass where all is well, as it is nearly always.
    if not counted.numel() or (0 <= counted.min() and counted.max() < classes):
        return
    outside = counted[(counted < 0) | (counted >= classes)].unique().tolist()
    raise ValueError(
        f'the label map {path or "of a sample"} must hold labels from 0 to '
        f'{classes - 1}, the classes of the decode head and the data, or {ignored}, '
        f'which is ignored, got {outside}. Cityscapes: train on *_labelTrainIds.png, '
        "which mmseg's tools/dataset_converters/cityscapes.py writes. A data set "
        'whose 0 is no class, as ADE20K: reduce_zero_label=True. Your own: '
        "num_classes of the heads, or the dataset's metainfo, must count every "
        'label')
