"""Bits per pixel of a PixelGPT on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from torch import Tensor

from ..layers.checks import check_positive_int
from ..openmmlab.registry import register
from .context_model import ContextModel
from .palette import Palette
from .seeded import seeded

FIGURES = ('model', 'unigram', 'context')


@register(METRICS)
class BitsPerPixel(BaseMetric):
    """Bits that a pixel costs: -log2 of the probability of its true colour.

    A pixel is one of the palette's colours, all three channels together, so
    without any knowledge it costs log2(colours), 9 bits for 512. Figures of another
    palette or size of the images cannot be compared.

    ``bits_per_pixel/model`` is the model's. With ``train_dataset`` there are two
    baselines that count colours in it, see :class:`ContextModel`: ``unigram`` uses
    the frequency of each colour, ``context`` also the colours left of and above the
    pixel. Of a model with the objective ``'masked'`` only hidden pixels count, and
    its figure is ``bits_per_pixel/hidden``: the model is given all other pixels, so
    these bits are not the code length of an image.

    Args:
        train_dataset: Config of the data set that the model was trained on; None:
            no baselines.
        images: How many samples of it are counted; a random crop of an image is
            another one each time.
        seed: Of random crops.
        collect_device: See BaseMetric.
        prefix: See BaseMetric.
        collect_dir: See BaseMetric.

    Raises:
        TypeError: ``images`` is no int.
        ValueError: It is below 5.
    """

    default_prefix = 'bits_per_pixel'

    def __init__(self,
                 train_dataset: dict | None = None,
                 images: int = 4000,
                 seed: int = 0,
                 collect_device: str = 'cpu',
                 prefix: str | None = None,
                 collect_dir: str | None = None) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        if check_positive_int('images', images) < 5:
            raise ValueError(f'images must be at least 5, got {images}')
        self.train_dataset, self.images, self.seed = train_dataset, images, seed
        self._context: tuple[Tensor, ContextModel] | None = None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the mean bits of each image.

        Raises:
            ValueError: The model gives none.
        """
        for sample in data_samples:
            if 'bits' not in sample:
                raise ValueError('BitsPerPixel needs a model such as PixelGPT, whose '
                                 f'samples have bits, got {sorted(sample)}')
            chosen = sample['predicted'].cpu()
            bits = [sample['bits'].cpu()]
            if self.train_dataset is not None:
                tokens = sample['tokens'].cpu()[None]
                counts = self._counts(sample['palette'].cpu())
                bits += [counts.unigram(tokens)[0], counts.context(tokens)[0]]
            self.results.append((
                sample['objective'], [x[chosen].double().mean().item() for x in bits]))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Mean over all images."""
        means = [sum(bits) / len(bits) for bits in zip(*(r[1] for r in results))]
        names = ('hidden' if results[0][0] == 'masked' else 'model', *FIGURES[1:])
        return dict(zip(names, means))

    def _counts(self, colours: Tensor) -> ContextModel:
        """The baselines, counted once for a palette."""
        if self._context is None or not torch.equal(self._context[0], colours):
            dataset = DATASETS.build(self.train_dataset)
            palette = Palette(len(colours), colours)
            sources = torch.arange(self.images) % len(dataset)
            with seeded(self.seed):
                tokens = torch.cat([
                    palette.tokens(dataset[i]['inputs'][None].float())
                    for i in sources.tolist()])
            self._context = colours, ContextModel(tokens, len(colours), sources)
        return self._context[1]
