"""Collate batches whose images all have one task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS, TRANSFORMS

from ..layers.checks import check_positive_int
from ..openmmlab.registry import register
from .degradations import TASKS, Degrade, check_tasks


@register(FUNCTIONS)
def one_task_collate(batch: Sequence[dict], crop: int,
                     tasks: str | Sequence[str] = tuple(TASKS)) -> dict:
    """Degrade the images of a batch by one random task.

    Args:
        batch: Results of a pipeline, with the loaded image ``img``.
        crop: Side of the degraded images. The random crop of the clean image has
            this side times the task's scale.
        tasks: Names of tasks, see :class:`~fpt_plugin.Degrade`.

    Returns:
        Samples of :class:`~fpt_plugin.PackImage`, collated by ``pseudo_collate``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A task is unknown, or an image is smaller than the crop.
    """
    names = check_tasks(tasks)
    task = names[np.random.randint(len(names))]
    side = check_positive_int('crop', crop) * TASKS[task].scale
    degrade, pack = Degrade(task), TRANSFORMS.build(dict(type='PackImage'))
    samples = []
    for results in batch:
        image = results['img']
        height, width = image.shape[:2]
        if min(height, width) < side:
            raise ValueError(
                f'images must have sides of at least {side} for {task}, got '
                f'{height}x{width} in {results.get("img_path", "an image")}')
        top = np.random.randint(height - side + 1)
        left = np.random.randint(width - side + 1)
        part = image[top:top + side, left:left + side]
        samples.append(pack.transform(degrade.transform(dict(results, img=part))))
    return pseudo_collate(samples)
