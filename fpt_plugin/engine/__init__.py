"""What training adds to the hosts' runner."""

from .label_check import SegLabelCheckHook
from .pyramid_check import PyramidLevelCheckHook

__all__ = ['SegLabelCheckHook', 'PyramidLevelCheckHook']
