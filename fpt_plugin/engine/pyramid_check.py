"""Compare the neck's maps with the heads before training."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..detectors.levels import watch_levels
from ..detectors.strides import watch_strides
from ..openmmlab.registry import register


@register(HOOKS)
class PyramidLevelCheckHook(Hook):
    """Rejects a neck whose maps do not fit the heads.

    It compares the number of maps with the levels of Deformable DETR, DINO and
    similar detectors; number and strides with anchors, points and RoI
    extractors; and the number with ``in_index`` of mmseg's heads. Other models
    pass. tools/train.py and tools/test.py add this hook to every model;
    elsewhere write
    ``custom_hooks=[dict(type='fpt_plugin.PyramidLevelCheckHook')]``.

    Raises:
        ValueError: Before the first iteration, or in it before the loss if the
            maps are needed for the comparison.
    """

    def before_run(self, runner) -> None:
        """Check the model now, and the neck's maps in forward passes."""
        watch_levels(runner.model)
        watch_strides(runner.model)
