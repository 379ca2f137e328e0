"""Necks for MMDetection and MMSegmentation."""

from .fpt import (FPT, GroundingTransformerNeck, RenderingTransformerNeck,
                  SelfTransformerNeck)
from .pyramids import BottomUpPyramid

__all__ = [
    'FPT', 'SelfTransformerNeck', 'GroundingTransformerNeck',
    'RenderingTransformerNeck', 'BottomUpPyramid'
]
