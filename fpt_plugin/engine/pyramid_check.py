"""Neck and transformer are compared before a detector runs."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..detectors.levels import watch_levels
from ..openmmlab.registry import register


@register(HOOKS)
class PyramidLevelCheckHook(Hook):
    """Refuses a neck with more or fewer maps than its detector has levels.

    Of Deformable DETR, DINO and the like; other models are left alone.
    tools/train.py and tools/test.py add this hook to every detector; elsewhere
    it is ``custom_hooks=[dict(type='fpt_plugin.PyramidLevelCheckHook')]``.

    Raises:
        ValueError: Before the first iteration, or in it where the neck does not
            say how many maps it gives.
    """

    def before_run(self, runner) -> None:
        """Look at the model, and from then on at what its neck gives."""
        watch_levels(runner.model)
