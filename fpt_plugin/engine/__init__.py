"""Hooks, checks and constructors that extend mmengine's runner."""

from .graft_optim_wrapper import GraftOptimWrapperConstructor
from .label_check import SegLabelCheckHook
from .pyramid_check import PyramidLevelCheckHook
from .reseed import ReseedHook
from .train_graft_only import TrainGraftOnlyHook
from .whole_checkpoint import WholeCheckpointHook
from .wrap_layers import wrap_layers

__all__ = [
    'SegLabelCheckHook', 'PyramidLevelCheckHook', 'TrainGraftOnlyHook',
    'ReseedHook', 'WholeCheckpointHook', 'GraftOptimWrapperConstructor',
    'wrap_layers'
]
