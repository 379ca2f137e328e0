"""Pre-training on images without labels: models, data and masks."""

from .bits_per_pixel import BitsPerPixel
from .decoder import GreenMIMDecoder
from .green_mim import GreenMIM
from .images import UnlabelledImages
from .palette_hook import FitPaletteHook
from .pixel_gpt import PixelGPT
from .reconstruction_error import ReconstructionError
from .reconstruction_hook import ReconstructionHook
from .restoration import RestorationPretrainer
from .sim_mim import SimMIM
from .transforms import PackImage, RandomResizedCrop

__all__ = [
    'GreenMIM', 'SimMIM', 'GreenMIMDecoder', 'UnlabelledImages', 'RandomResizedCrop',
    'PackImage', 'ReconstructionError', 'ReconstructionHook', 'RestorationPretrainer',
    'PixelGPT', 'FitPaletteHook', 'BitsPerPixel'
]
