"""Necks for MMDetection and MMSegmentation."""

from .fpt import FPT
from .pyramids import UFP, BottomUpPyramid
from .single_branch import (
                            GroundingTransformerNeck,
                            RenderingTransformerNeck,
                            SelfTransformerNeck,
)

__all__ = [
    'FPT', 'SelfTransformerNeck', 'GroundingTransformerNeck',
    'RenderingTransformerNeck', 'BottomUpPyramid', 'UFP'
]
