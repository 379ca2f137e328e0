"""Restoration of images: degradations to undo, and metrics of the result."""

from .degradations import Degrade
from .metrics import PSNR, SSIM

__all__ = ['Degrade', 'PSNR', 'SSIM']
