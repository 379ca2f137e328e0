"""Small models for restoration pre-training, with parts of both libraries."""

from __future__ import annotations

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from fpt_plugin import RestorationPretrainer
from fpt_plugin.restoration.degradations import TASKS
from helpers.processes import train_in_ddp

NECKS = ('FPN', 'FPT', 'UFP', 'UFP-FPT')
CHANNELS = [8, 16, 32, 64]
PREPROCESSOR = dict(
    type='ImgDataPreprocessor', mean=[120., 110., 100.], std=[50., 51., 52.],
    bgr_to_rgb=True)


def resnet(library: str, dilated: bool) -> dict:
    """Return a ResNet of few channels; dilated for UFP."""
    sizes = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)) if dilated else {}
    return dict(type=f'{library}.ResNet', depth=18, base_channels=8,
                stem_channels=8, norm_cfg=dict(type='BN'), **sizes)


def neck(name: str, library: str, **settings) -> dict:
    shape = dict(in_channels=CHANNELS, out_channels=8)
    ufp = dict(type='UFP', kernel_sizes=(1, 3, 5, 7))
    return {
        'FPN': dict(type=f'{library}.FPN', **shape, **settings),
        'FPT': dict(type='FPT', **shape, **settings),
        'UFP': dict(ufp, **shape),
        'UFP-FPT': dict(type='FPT', pyramid=ufp, **shape)}[name]


def detector_parts(name: str) -> dict:
    """Return the parts of a detector of mmdet with five maps."""
    return dict(backbone=resnet('mmdet', name.startswith('UFP')),
                neck=neck(name, 'mmdet', num_outs=5))


def segmentor_parts(name: str) -> dict:
    """Return the parts of a segmentor of mmseg with a decode head."""
    dilated = name.startswith('UFP')
    return dict(
        backbone=resnet('mmseg', dilated), neck=neck(name, 'mmseg', num_outs=4),
        decode_head=dict(
            type='mmseg.FPNHead', in_channels=[8] * 4, in_index=[0, 1, 2, 3],
            feature_strides=[8] * 4 if dilated else [4, 8, 16, 32], channels=8,
            num_classes=3, norm_cfg=dict(type='BN'), align_corners=False))


def restorer(parts: dict, **settings) -> RestorationPretrainer:
    return RestorationPretrainer(**dict(
        dict(tail=dict(channels=16), data_preprocessor=PREPROCESSOR), **parts,
        **settings))


def batch_of(size: tuple[int, int], batch: int = 2,
             tasks: list[str] | None = None) -> tuple[Tensor, list[BaseDataElement]]:
    """Draw images in the normalised range, and samples whose tasks alternate."""
    tasks = tasks or list(TASKS)
    samples = [
        BaseDataElement(
            metainfo=dict(task=tasks[i % len(tasks)]),
            gt_img=torch.randint(256, (3, *size), dtype=torch.uint8))
        for i in range(batch)]
    return torch.randn(batch, 3, *size), samples


def in_two_processes(steps: int = 3) -> list[Tensor]:
    """Train under DDP, one task in each process; return the parameters."""
    torch.manual_seed(0)
    model = restorer(segmentor_parts('FPT'))
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    batches = (batch_of((64, 64), tasks=[list(TASKS)[rank]]) for _ in range(steps))
    return train_in_ddp(model, batches, 1e-2)
