"""How well a masked image model predicts images that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..openmmlab.registry import register


@register(METRICS)
class ReconstructionError(BaseMetric):
    """Mean squared error of hidden units, beside that of a flat guess.

    ``error`` is the model's, ``flat_error`` that of the guess, and ``explained``
    the share of the guess's error that the model takes away: 0 for a model that
    draws flat units, 1 for one that draws them perfectly. The guess is the mean
    colour of the visible units of an image. GreenMIM is only asked for what is
    inside a unit, not for its brightness and contrast, so the guess is given these
    too: models of different targets cannot be compared by it.

    Args:
        collect_device: See BaseMetric.
        prefix: See BaseMetric.
    """

    default_prefix = 'reconstruction'

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the errors of each image.

        Raises:
            ValueError: The model gives none.
        """
        for sample in data_samples:
            if 'flat_error' not in sample:
                raise ValueError('ReconstructionError needs a masked image model, '
                                 'such as GreenMIM, whose samples have flat_error, '
                                 f'got {sorted(sample)}')
            self.results.append((float(sample['error']), float(sample['flat_error'])))

    def compute_metrics(self, results: list[tuple[float, float]]) -> dict[str, float]:
        """Mean over all images."""
        error, flat = (sum(errors) / len(results) for errors in zip(*results))
        return dict(error=error, flat_error=flat, explained=1 - error / flat)
