"""Detectors that cannot be built from the libraries' classes by a config."""

from .pyramid_memory import PyramidMemoryDETR

__all__ = ['PyramidMemoryDETR']
