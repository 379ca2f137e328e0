"""PixelGPT: a transformer that learns images by predicting their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn import functional as F

from ..functional.checks import accumulation_dtype
from ..layers.checks import check_flags, check_map, check_positive_int, check_sides
from ..openmmlab.registry import register
from ..restoration.pixels import to_pixels
from .masks import count_visible, hidden_units, on_device_of, random_units
from .palette import Palette
from .pixel_transformer import LayerCache, PixelTransformer

# The paper's, with the heads of its code: 76 M, 455 M and 1.36 B parameters.
SIZES = dict(
    S=dict(depth=24, embed_dims=512, num_heads=8),
    M=dict(depth=36, embed_dims=1024, num_heads=8),
    L=dict(depth=48, embed_dims=1536, num_heads=16))
OBJECTIVES = ('autoregressive', 'masked')
GREY = 127  # of hidden pixels in pictures


@register(MODELS)
class PixelGPT(BaseModel):
    """Learn small images as sequences of colours, without labels (iGPT).

    A pixel becomes one of a palette's colours, an image a sequence of them, row by
    row, and a transformer like GPT-2 predicts each pixel from those before it, or
    hidden pixels from all others (https://proceedings.mlr.press/v119/chen20s.html).
    It serves to study features, see ``python -m fpt_plugin probe``. For accuracy
    another pre-training is better and far cheaper.

    Images come from mmengine's ImgDataPreprocessor in the size of the model: the
    pipeline resizes them. The palette comes from
    :class:`~fpt_plugin.FitPaletteHook` before a training, or from a checkpoint.

    Args:
        size: ``'S'``, ``'M'`` or ``'L'`` of the paper, or numbers:
            ``dict(depth=8, embed_dims=144, num_heads=3)``, and ``mlp_ratio`` if it
            is not 4.
        image_size: Height and width of the images, or one number for both.
        colours: Number of colours of the palette.
        objective: ``'autoregressive'``: predict each pixel from those before it;
            ``'masked'``: predict hidden pixels from all others.
        mask_ratio: Share of hidden pixels, of ``'masked'`` only.
        palette: The colours, see :class:`Palette`; None: found or loaded later.
        data_preprocessor: See BaseModel; None: images in 0..255, as in the files.
        init_cfg: See BaseModel.
        colour_features: Whether to add fixed features of the colour values to the
            learned embeddings, so that similar colours share what the model learns.
            The paper does not.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is unknown or out of its range.

    Example:
        >>> model = PixelGPT(dict(depth=2, embed_dims=32, num_heads=2), 8, colours=4)
        >>> images = 255 * torch.rand(2, 3, 8, 8)
        >>> model.palette.fit(images.movedim(1, 3).flatten(0, 2))
        >>> model(images, mode='loss')['bits']  # before it has learnt
        tensor(2.)
    """

    def __init__(self,
                 size: str | Mapping[str, float] = 'S',
                 image_size: int | Sequence[int] = 32,
                 colours: int = 512,
                 objective: str = 'autoregressive',
                 mask_ratio: float = 0.15,
                 palette: str | Path | Sequence[Sequence[float]] | None = None,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None,
                 colour_features: bool = False) -> None:
        super().__init__(data_preprocessor or dict(type='ImgDataPreprocessor'),
                         init_cfg)
        if objective not in OBJECTIVES:
            raise ValueError(f'objective must be one of {OBJECTIVES}, got '
                             f'{objective!r}')
        if not 0 < mask_ratio < 1:
            raise ValueError(f'mask_ratio must be in (0, 1), got {mask_ratio}')
        check_flags(colour_features=colour_features)
        self.image_size = check_sides('image_size', image_size)
        self.pixels = self.image_size[0] * self.image_size[1]
        self.objective, self.mask_ratio = objective, mask_ratio
        self.causal = objective == 'autoregressive'
        if not self.causal:
            count_visible(self.pixels, mask_ratio)
        self.palette = Palette(colours, palette)
        self.net = PixelTransformer(self.pixels, colours, **_check_size(size),
                                    colour_features=colour_features)
        self.depth = len(self.net.blocks)

    def forward(self,
                inputs: Tensor,
                data_samples: list[BaseDataElement] | None = None,
                mode: str = 'tensor'
                ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Predict the pixels of images.

        Args:
            inputs: (B, 3, H, W), of the model's size.
            data_samples: What predictions are added to; None: new ones.
            mode: ``'loss'``: a dict with the loss, and the same in ``bits`` a pixel;
                ``'tensor'``: logits (B, M, colours) of the predicted pixels: all of
                them in order, or hidden ones that are drawn; ``'predict'``: a
                sample for each image with ``tokens`` (H, W), ``bits`` (H, W), the
                cost of each predicted pixel, ``predicted`` (H, W), bool, true for
                these, ``palette`` (colours, 3), and ``objective``.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: The images have another size, ``mode`` is not as above, or
                the palette is empty.
        """
        if mode not in ('loss', 'tensor', 'predict'):
            raise ValueError("mode must be 'loss', 'tensor' or 'predict', "
                             f'got {mode!r}')
        tokens = self.tokens(inputs)
        hidden = None if self.causal else on_device_of(self._draw(len(tokens)), tokens)
        logits = self.logits(tokens, hidden)
        if mode == 'tensor':
            return logits
        targets = tokens if hidden is None else tokens.gather(1, hidden)
        nats = F.cross_entropy(
            logits.flatten(0, 1).to(accumulation_dtype(logits)), targets.flatten(),
            reduction='none').view(targets.shape)  # (B, M)
        if mode == 'loss':
            loss = nats.mean()
            return dict(loss=loss, bits=loss.detach() / log(2))
        return self._samples(data_samples, tokens, nats / log(2), hidden)

    def tokens(self, inputs: Tensor) -> Tensor:
        """Turn images, as the preprocessor returns them, into sequences (B, N).

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: They have another size, or the palette is empty.
        """
        check_map('inputs', inputs)
        wanted = (3, *self.image_size)
        if inputs.shape[1:] != wanted or not len(inputs):
            raise ValueError(
                f'inputs must be (B, {", ".join(map(str, wanted))}) for '
                f'image_size={self.image_size}, got {tuple(inputs.shape)}: let the '
                'pipeline resize the images')
        pixels = to_pixels(self.data_preprocessor, inputs)
        return self.palette.tokens(pixels).flatten(1)

    def images(self, tokens: Tensor) -> Tensor:
        """Turn sequences (B, N) into images (B, 3, H, W) in 0..255, as in the files."""
        return self.palette.images(tokens.unflatten(1, self.image_size))

    def logits(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Predict colours.

        Args:
            tokens: (B, N).
            hidden: (B, M), the numbers of hidden pixels, of ``'masked'`` only.

        Returns:
            (B, N, colours): of each pixel, from those before it; of ``'masked'``
            (B, M, colours): of hidden pixels, from all others.
        """
        embeddings, weights = self._tables()
        x = self.net.embed(tokens, embeddings)  # (B, N, C)
        if hidden is None:
            x = torch.cat([self.net.start(len(x)), x[:, :-1]], dim=1)
            return F.linear(self.net(x, causal=True), weights)
        places = hidden[..., None].expand(-1, -1, x.shape[2])  # (B, M, C)
        masked = self.net.special + self.net.positions[hidden]
        x = self.net(x.scatter(1, places, masked.to(x.dtype)), causal=False)
        return F.linear(x.gather(1, places), weights)

    def features(self, inputs: Tensor,
                 layers: Sequence[int] | None = None) -> list[Tensor]:
        """Compute the features of pixels.

        A causal model computes them from the pixel itself and those before it.

        Args:
            inputs: (B, 3, H, W), as for :meth:`forward`.
            layers: Numbers from 0, the embedded pixels, to ``depth``, the last
                ones; None: all.

        Returns:
            (B, C, H, W) of each layer, normalised.

        Raises:
            TypeError: A layer is no int.
            ValueError: There is no such layer, or the images are not as above.
        """
        layers = range(self.depth + 1) if layers is None else layers
        for layer in layers:
            if not isinstance(layer, int) or isinstance(layer, bool):
                raise TypeError(f'layers must be ints, got {layer!r}')
            if not 0 <= layer <= self.depth:
                raise ValueError(f'layers must be in 0..{self.depth}, got {layer}')
        x = self.net.embed(self.tokens(inputs), self._tables()[0])  # (B, N, C)
        if self.causal:
            x = torch.cat([self.net.start(len(x)), x], dim=1)
        found = {
            i: states[:, -self.pixels:].transpose(1, 2).unflatten(2, self.image_size)
            for i, states in enumerate(self.net.layers(x, self.causal))
            if i in layers}
        return [found[layer] for layer in layers]

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1., top_k: int | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Draw images: (count, 3, H, W) in 0..255. See :meth:`generate`."""
        prompt = self.net.positions.new_empty(
            check_positive_int('count', count), 0, dtype=torch.long)
        return self.images(self.generate(prompt, temperature, top_k, generator))

    @torch.no_grad()
    def complete(self, inputs: Tensor, rows: int | None = None,
                 temperature: float = 1., top_k: int | None = None,
                 generator: torch.Generator | None = None) -> Tensor:
        """Keep the upper rows of images and draw the others.

        Args:
            inputs: (B, 3, H, W), as for :meth:`forward`.
            rows: How many are kept; None: half of them.
            temperature: See :meth:`generate`.
            top_k: See :meth:`generate`.
            generator: See :meth:`generate`.

        Returns:
            (B, 3, H, W) in 0..255, in the palette's colours.

        Raises:
            ValueError: ``rows`` is not in 0..H, or as :meth:`generate`.
        """
        rows = self.image_size[0] // 2 if rows is None else rows
        if not 0 <= rows <= self.image_size[0]:
            raise ValueError(f'rows must be in 0..{self.image_size[0]}, got {rows}')
        prompt = self.tokens(inputs)[:, :rows * self.image_size[1]]
        return self.images(self.generate(prompt, temperature, top_k, generator))

    @torch.no_grad()
    def generate(self, prompt: Tensor, temperature: float = 1.,
                 top_k: int | None = None, generator: torch.Generator | None = None,
                 cached: bool = True) -> Tensor:
        """Continue sequences to whole images.

        Args:
            prompt: (B, n), the first pixels, n may be 0.
            temperature: What logits are divided by: below 1 likely colours are
                drawn more often.
            top_k: How many of the likeliest colours may be drawn; None: all.
            generator: Of the random numbers, on the model's device; None: torch's.
            cached: Whether keys and values of earlier pixels are kept. It is the
                same without, and slower.

        Returns:
            (B, N).

        Raises:
            TypeError: ``top_k`` is no int.
            ValueError: The objective is not ``'autoregressive'``, the temperature
                is not positive, or ``top_k`` or the prompt is too large.
        """
        if not self.causal:
            raise ValueError("objective must be 'autoregressive' to generate images, "
                             f'got {self.objective!r}')
        if not temperature > 0:
            raise ValueError(f'temperature must be positive, got {temperature}')
        if top_k is not None and check_positive_int(
                'top_k', top_k) > self.palette.size:
            raise ValueError(f'top_k must be at most {self.palette.size}, the number '
                             f'of colours, got {top_k}')
        if prompt.shape[1] > self.pixels:
            raise ValueError(f'prompt must have at most {self.pixels} pixels, got '
                             f'{tuple(prompt.shape)}')
        net, tokens = self.net, prompt
        embeddings, weights = self._tables()
        caches = [LayerCache(self.pixels) for _ in net.blocks] if cached else None
        x = torch.cat([net.start(len(prompt)), net.embed(prompt, embeddings)], dim=1)
        for place in range(prompt.shape[1], self.pixels):
            logits = F.linear(net(x, True, caches)[:, -1], weights).float()
            logits = logits / temperature
            if top_k is not None:
                least = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            drawn = logits.softmax(1).multinomial(1, generator=generator)  # (B, 1)
            tokens = torch.cat([tokens, drawn], dim=1)
            new = net.embed(drawn, embeddings, first=place)
            x = new if cached else torch.cat([x, new], dim=1)
        return tokens

    def panels(self, batch: dict) -> list[Tensor]:
        """Make the images that :class:`ReconstructionHook` draws.

        Args:
            batch: As it comes from the data set.

        Returns:
            (B, 3, H, W) each, in 0..255, channels as in the files. The images, and
            in the palette's colours; then the upper half, its completion, and an
            image drawn from nothing, or, of ``'masked'``, the visible pixels and
            the likeliest colours of hidden ones.
        """
        inputs = self.data_preprocessor(batch)['inputs']
        tokens = self.tokens(inputs)
        shown = [to_pixels(self.data_preprocessor, inputs), self.images(tokens)]
        if self.causal:
            upper = shown[1].clone()
            upper[:, :, self.image_size[0] // 2:] = GREY
            # The hook puts back the random numbers of the CPU, not a device's.
            seed = torch.randint(2**62, (), device='cpu').item()
            generator = torch.Generator(tokens.device).manual_seed(seed)
            return [*shown, upper, self.complete(inputs, generator=generator),
                    self.sample(len(inputs), generator=generator)]
        hidden = on_device_of(self._draw(len(tokens)), tokens)
        likeliest = self.logits(tokens, hidden).argmax(2)
        mask = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, hidden, True)
        mask = mask.unflatten(1, self.image_size)[:, None]
        return [*shown, shown[1].masked_fill(mask, GREY),
                self.images(tokens.scatter(1, hidden, likeliest))]

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings of colours and the weights that predict them.

        Raises:
            ValueError: They depend on the palette, which is empty.
        """
        if self.net.colour_features is not None:
            self.palette.check_fitted()
        return self.net.tables(self.palette.colours)

    def _draw(self, batch: int) -> Tensor:
        """Draw the hidden pixels of each image: (B, M)."""
        visible = count_visible(self.pixels, self.mask_ratio)
        return hidden_units(random_units(batch, self.pixels, visible), self.pixels)

    def _samples(self, data_samples: list[BaseDataElement] | None, tokens: Tensor,
                 bits: Tensor, hidden: Tensor | None) -> list[BaseDataElement]:
        """Make the samples of ``mode='predict'``."""
        predicted = torch.ones_like(tokens, dtype=torch.bool)
        if hidden is not None:
            predicted = torch.zeros_like(predicted).scatter_(1, hidden, True)
            bits = bits.new_zeros(tokens.shape).scatter_(1, hidden, bits)
        samples = data_samples or [BaseDataElement() for _ in tokens]
        for sample, *values in zip(samples, *(
                x.unflatten(1, self.image_size) for x in (tokens, bits, predicted))):
            sample.tokens, sample.bits, sample.predicted = values
            sample.palette = self.palette.colours
            sample.set_metainfo(dict(objective=self.objective))
        return samples


def _check_size(size: str | Mapping[str, float]) -> dict[str, float]:
    """Depth, width and heads.

    Raises:
        TypeError: A number is no int.
        ValueError: The name or a number is unknown, missing, or does not fit.
    """
    known = ('depth', 'embed_dims', 'num_heads', 'mlp_ratio')
    if isinstance(size, str) and size in SIZES:
        return SIZES[size]
    if not isinstance(size, Mapping) or not set(known[:3]) <= set(size) <= set(known):
        raise ValueError(f'size must be one of {tuple(SIZES)} or a dict of {known}, '
                         f'got {size!r}')
    for name in known[:3]:
        check_positive_int(f'{name} of size', size[name])
    if size['embed_dims'] % size['num_heads']:
        raise ValueError('embed_dims of size must be a multiple of num_heads='
                         f'{size["num_heads"]}, got {size["embed_dims"]}')
    if not size.get('mlp_ratio', 4.) > 0:
        raise ValueError(f'mlp_ratio of size must be positive, got {size["mlp_ratio"]}')
    return dict(size)
