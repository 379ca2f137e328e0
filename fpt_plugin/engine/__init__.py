"""What training adds to the hosts' runner."""

from .label_check import SegLabelCheckHook

__all__ = ['SegLabelCheckHook']
