"""Measure how well a masked image model predicts the hidden units."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..openmmlab.registry import register


@register(METRICS)
class ReconstructionError(BaseMetric):
    """Mean squared error of hidden units, compared with that of a flat guess.

    ``error`` is the model's, ``flat_error`` that of the guess, and ``explained``
    is 1 - error / flat_error: 0 for a model that predicts flat units, 1 for a
    perfect one, nan if the guess is exact. The guess is the mean colour of the
    visible units of an image. GreenMIM predicts normalised units, so its guess also
    gets the true brightness and contrast of each unit. Models with different targets
    cannot be compared by this metric.

    Args:
        collect_device: See BaseMetric.
        prefix: See BaseMetric.
    """

    default_prefix = 'reconstruction'

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Store the errors of each image.

        Raises:
            ValueError: The samples have no errors.
        """
        for sample in data_samples:
            if 'flat_error' not in sample:
                raise ValueError('ReconstructionError needs a masked image model, '
                                 'such as GreenMIM, whose samples have flat_error, '
                                 f'got {sorted(sample)}')
            self.results.append((float(sample['error']), float(sample['flat_error'])))

    def compute_metrics(self, results: list[tuple[float, float]]) -> dict[str, float]:
        """Average over all images."""
        error, flat = (sum(errors) / len(results) for errors in zip(*results))
        explained = 1 - error / flat if flat else nan
        return dict(error=error, flat_error=flat, explained=explained)
