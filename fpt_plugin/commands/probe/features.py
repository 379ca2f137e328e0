"""Features for linear classifiers: layers of a network, or raw colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...pretraining import PixelGPT
from ...pretraining.decoder import sine_positions
from .data import Labelled

BATCH = 16
MEMORY = 2**30  # bytes of features for training, those of as many layers as fit
WINDOW = 7
PLACE_DIMS = 64


@dataclass
class Source:
    """Kinds of features of images.

    Attributes:
        names: Of the kinds, such as the numbers of layers.
        compute: From images (B, 3, H, W) in 0..255, as in the files, and some of the
            names to (B, n, C) each: n is 1, or the number of pixels.
    """

    names: list
    compute: Callable[[Tensor, Sequence], list[Tensor]]


def network_source(model: PixelGPT, layers: Sequence[int], dense: bool) -> Source:
    """Return the layers of a network; for image labels averaged over the pixels."""

    @torch.no_grad()
    def compute(images: Tensor, chosen: Sequence[int]) -> list[Tensor]:
        inputs = model.data_preprocessor(dict(inputs=[*images]))['inputs']
        maps = [x.flatten(2).transpose(1, 2) for x in model.features(inputs, chosen)]
        return maps if dense else [x.mean(1, keepdim=True) for x in maps]

    return Source(list(layers), compute)


def raw_source(dense: bool) -> Source:
    """Return features that need no network.

    For each pixel: its colour; its colour and place; the colours around it and its
    place. For an image: its mean colour; all its pixels.
    """
    def compute(images: Tensor, chosen: Sequence[str]) -> list[Tensor]:
        images = images.float()
        pixels = images.flatten(2).transpose(1, 2)  # (B, N, 3)
        if not dense:
            found = {'mean colour': pixels.mean(1, keepdim=True),
                     'all pixels': images.flatten(1)[:, None]}
            return [found[name] for name in chosen]
        place = sine_positions(PLACE_DIMS, images.shape[2:], images.device)
        place = place.expand(len(images), -1, -1)
        around = F.unfold(F.pad(images, [WINDOW // 2] * 4, mode='replicate'), WINDOW)
        found = dict(zip(raw_names(True), (
            pixels, torch.cat([pixels, place], 2),
            torch.cat([around.transpose(1, 2), place], 2))))
        return [found[name] for name in chosen]

    return Source(raw_names(dense), compute)


def raw_names(dense: bool) -> list[str]:
    """Name the features of :func:`raw_source`."""
    if not dense:
        return ['mean colour', 'all pixels']
    return ['colour', 'colour, place', f'{WINDOW}x{WINDOW} colours, place']


def draw_pixels(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw labelled pixels of each image: a mask like ``labels``, (I, N).

    Args:
        labels: (I, N), -1 where there is none.
        count: How many of each image; all where there are fewer.
        seed: Of the random numbers.
    """
    noise = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    noise[labels < 0] = 2.
    ranks = noise.argsort(1).argsort(1)
    return (ranks < count) & (labels >= 0)


def groups_of(source: Source, data: Labelled, samples: int) -> Iterator[list]:
    """Yield names of kinds whose features of ``samples`` pixels fit into memory."""
    widths = [x.shape[2] for x in source.compute(data.images[:1], source.names)]
    group, filled = [], 0
    for name, width in zip(source.names, widths):
        needed = 4 * samples * width
        if group and filled + needed > MEMORY:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += needed
    yield group


def gather(source: Source, names: Sequence, data: Labelled,
           chosen: Sequence[Tensor]) -> list[list[Tensor]]:
    """Compute features of chosen pixels in one pass over the images.

    Args:
        source: Of the features.
        names: Some of its kinds.
        data: I images.
        chosen: Choices of pixels, (I, N), bool, each.

    Returns:
        (n, C) for each name and each choice.
    """
    kept = [[[] for _ in chosen] for _ in names]
    for part in torch.arange(len(data)).split(BATCH):
        for lists, x in zip(kept, source.compute(data.images[part], names)):
            for found, choice in zip(lists, chosen):
                found.append(x[choice[part]])
    return [[torch.cat(found) for found in lists] for lists in kept]
