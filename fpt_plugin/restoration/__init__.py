"""Restoration of images: degradations to undo, models, metrics of the result."""

from .batches import one_task_collate
from .degradations import Degrade
from .ipt import IPT
from .metrics import PSNR, SSIM

__all__ = ['Degrade', 'PSNR', 'SSIM', 'IPT', 'one_task_collate']
