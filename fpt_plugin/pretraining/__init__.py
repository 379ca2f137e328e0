"""Pre-training on images without labels: models, data and masks."""

from .decoder import GreenMIMDecoder
from .green_mim import GreenMIM
from .images import UnlabelledImages
from .reconstruction_error import ReconstructionError
from .reconstruction_hook import ReconstructionHook
from .restoration import RestorationPretrainer
from .sim_mim import SimMIM
from .transforms import PackImage, RandomResizedCrop

__all__ = [
    'GreenMIM', 'SimMIM', 'GreenMIMDecoder', 'UnlabelledImages', 'RandomResizedCrop',
    'PackImage', 'ReconstructionError', 'ReconstructionHook', 'RestorationPretrainer'
]
