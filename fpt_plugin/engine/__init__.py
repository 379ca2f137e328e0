"""What training adds to the hosts' runner."""

from .label_check import SegLabelCheckHook
from .pyramid_check import PyramidLevelCheckHook
from .train_graft_only import TrainGraftOnlyHook
from .wrap_layers import wrap_layers

__all__ = [
    'SegLabelCheckHook', 'PyramidLevelCheckHook', 'TrainGraftOnlyHook',
    'wrap_layers'
]
