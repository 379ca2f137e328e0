"""Image restoration: degradations, models and metrics."""

from .batches import one_task_collate
from .degradations import Degrade
from .ipt import IPT
from .metrics import PSNR, SSIM
from .paired_images import LoadCleanImage, PairedImages
from .references import CropWithReference, LoadReference, ReferencePairs
from .ttsr import TTSR

__all__ = [
    'Degrade', 'PSNR', 'SSIM', 'IPT', 'TTSR', 'one_task_collate', 'PairedImages',
    'LoadCleanImage', 'ReferencePairs', 'LoadReference', 'CropWithReference'
]
