"""Neck and heads are compared before a model learns."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..detectors.levels import watch_levels
from ..detectors.strides import watch_strides
from ..openmmlab.registry import register


@register(HOOKS)
class PyramidLevelCheckHook(Hook):
    """Refuses a neck whose maps do not fit the heads.

    Their number against the levels of Deformable DETR, DINO and the like; number
    and strides against anchors, points and RoI extractors; the number against
    ``in_index`` of mmseg's heads. Other models are left alone. tools/train.py
    and tools/test.py add this hook to every model; elsewhere it is
    ``custom_hooks=[dict(type='fpt_plugin.PyramidLevelCheckHook')]``.

    Raises:
        ValueError: Before the first iteration, or in it, before the loss, where
            only the maps tell.
    """

    def before_run(self, runner) -> None:
        """Look at the model, and from then on at what its neck gives."""
        watch_levels(runner.model)
        watch_strides(runner.model)
