"""Check that data fit their config, before anything is built."""

from .check import check_data, check_model_classes, inspect_data
from .datasets import unscoped_type

__all__ = ['check_data', 'check_model_classes', 'inspect_data', 'unscoped_type']
