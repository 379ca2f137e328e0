"""Detectors that the hosts' classes and a config alone cannot make."""

from .pyramid_memory import PyramidMemoryDETR

__all__ = ['PyramidMemoryDETR']
