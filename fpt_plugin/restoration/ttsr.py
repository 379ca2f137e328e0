"""TTSR: super-resolution with a reference image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..functional import texture_transfer
from ..functional.checks import accumulation_dtype
from ..layers.checks import check_flags, check_map
from ..layers.texture_transformer import CrossScaleIntegration, TextureTransformer
from ..openmmlab.registry import register
from .blocks import ResidualBlock
from .pixels import RGB, moments, to_pixels

SCALE = 4
PATCH = 3


class TextureExtractor(nn.Module):
    """The first layers of VGG19, to relu3_1, trained with TTSR (Sec. 3.1).

    Args:
        channels: Channels of the maps of full, half and quarter size; VGG19 has 64,
            128 and 256.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        before, stages = 3, []
        for number, width in enumerate(channels):
            layers: list[nn.Module] = []
            if number:
                layers += [nn.Conv2d(before, before, 3, padding=1), nn.ReLU(),
                           nn.MaxPool2d(2)]
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            stages.append(nn.Sequential(*layers))
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to (B, C_i, H / 2^i, W / 2^i) for each stage i."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps


def _body(channels: int, blocks: int) -> nn.Sequential:
    """Build residual blocks and a convolution."""
    return nn.Sequential(*(ResidualBlock(channels, 3) for _ in range(blocks)),
                         nn.Conv2d(channels, channels, 3, padding=1))


@register(MODELS)
class TTSR(BaseModel):
    """Enlarge images four times with the textures of a reference.

    The Texture Transformer Network for Super-Resolution
    (https://arxiv.org/abs/2006.04139) finds the patch of the reference that is most
    similar to each patch of the image, and adds its textures at three scales. The
    losses are L1 and the transferal perceptual loss; there are no adversarial and
    VGG losses.

    Images come from the transform :class:`~fpt_plugin.Degrade` with ``'sr4'``,
    references from the data set :class:`~fpt_plugin.ReferencePairs`.

    Args:
        channels: Channels of the features.
        blocks: Number of residual blocks before the first texture, and at each
            scale.
        texture_channels: See :class:`TextureExtractor`.
        perceptual_weight: Weight of the transferal perceptual loss; 0: none.
        add_bicubic: Whether to predict the difference to bicubic enlargement.
        data_preprocessor: mmengine's ImgDataPreprocessor for RGB images; None:
            convert files to RGB in [-1, 1].
        init_cfg: See BaseModel.

    Raises:
        ValueError: ``blocks`` or ``texture_channels`` has the wrong length, or the
            weight is negative.

    Example:
        >>> model = TTSR(channels=8, blocks=(1, 1, 1, 1), texture_channels=(4, 8, 8))
        >>> image, reference = torch.rand(1, 3, 24, 32), torch.rand(1, 3, 64, 48)
        >>> model.restore(255 * image, 255 * reference).shape
        torch.Size([1, 3, 96, 128])
    """

    def __init__(self,
                 channels: int = 64,
                 blocks: Sequence[int] = (16, 16, 8, 4),
                 texture_channels: Sequence[int] = (64, 128, 256),
                 perceptual_weight: float = 1e-2,
                 add_bicubic: bool = False,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(data_preprocessor or RGB, init_cfg)
        if len(blocks) != 4 or len(texture_channels) != 3:
            raise ValueError('blocks must be four numbers and texture_channels three, '
                             f'got {tuple(blocks)} and {tuple(texture_channels)}')
        if perceptual_weight < 0:
            raise ValueError('perceptual_weight must not be negative, got '
                             f'{perceptual_weight}')
        check_flags(add_bicubic=add_bicubic)
        self.perceptual_weight = perceptual_weight
        self.add_bicubic = add_bicubic
        self.textures = TextureExtractor(texture_channels)
        self.head = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
        self.first = _body(channels, blocks[0])
        # From scale 1 to scale 4; texture_channels are in the reverse order.
        self.transformers = nn.ModuleList(
            TextureTransformer(channels, width) for width in texture_channels[::-1])
        self.integrations = nn.ModuleList(
            CrossScaleIntegration(channels, scales) for scales in (2, 3))
        self.bodies = nn.ModuleList(
            nn.ModuleList(_body(channels, blocks[scale]) for _ in range(scale))
            for scale in (1, 2, 3))
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1),
                          nn.PixelShuffle(2)) for _ in range(2))
        self.gather = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())
            for _ in range(2))
        self.tail = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
            nn.Conv2d(channels // 2, 3, 1))

    def forward(self,
                inputs: Tensor,
                data_samples: list[BaseDataElement] | None = None,
                mode: str = 'tensor'
                ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Enlarge images.

        Args:
            inputs: (B, 3, H, W), normalised.
            data_samples: One per image. All or none have ``ref_img``, the reference
                (3, Hr, Wr) in 0..255. Except for ``'tensor'`` they have ``gt_img``,
                the clean image (3, 4 * H, 4 * W) in 0..255.
            mode: ``'loss'``: a dict of losses; ``'tensor'``: (B, 3, 4 * H, 4 * W),
                normalised; ``'predict'``: the samples with ``pred_img``
                (3, 4 * H, 4 * W) in 0..255, not rounded.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: ``mode`` or a shape is wrong.
        """
        check_map('inputs', inputs, 3)
        if mode not in ('loss', 'tensor', 'predict'):
            raise ValueError("mode must be 'loss', 'tensor' or 'predict', "
                             f'got {mode!r}')
        references = self._references(data_samples)
        if mode == 'loss':
            return self.loss(inputs, references, data_samples)
        images = self._enlarge(inputs, references)[0]
        if mode == 'tensor':
            return images
        for sample, image in zip(
                data_samples, to_pixels(self.data_preprocessor, images)):
            sample.pred_img = image
        return data_samples

    def loss(self, inputs: Tensor, references: list[Tensor] | None,
             data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Compare enlarged images with clean images and with the textures."""
        target = self.data_preprocessor(dict(
            inputs=[sample.gt_img for sample in data_samples]))['inputs']
        images, textures = self._enlarge(inputs, references)
        if target.shape != images.shape:
            raise ValueError(f'clean images must be {tuple(images.shape)}, got '
                             f'{tuple(target.shape)}')
        dtype = accumulation_dtype(inputs)
        losses = dict(loss_l1=F.l1_loss(images.to(dtype), target.to(dtype)))
        if textures and self.perceptual_weight:
            # The gradient must change the image, not the extractor.
            fixed = {name: p.detach() for name, p in self.textures.named_parameters()}
            maps = functional_call(self.textures, fixed, images)
            losses['loss_perceptual'] = self.perceptual_weight * sum(
                F.mse_loss(x.to(dtype), texture.detach().to(dtype))
                for x, texture in zip(maps[::-1], textures))
        return losses

    @torch.no_grad()
    def restore(self, images: Tensor,
                reference: Tensor | Sequence[Tensor] | None = None) -> Tensor:
        """Enlarge images four times.

        Args:
            images: (B, 3, H, W), RGB, in 0..255.
            reference: (B, 3, Hr, Wr), RGB, in 0..255, with sides of at least 12
                pixels, or a list of references; None: no textures.

        Returns:
            (B, 3, 4 * H, 4 * W) in 0..255, not rounded.

        Raises:
            TypeError: They are no batches of floating point images.
            ValueError: A shape is wrong.
        """
        out, _ = self._enlarge(*self._normalised(images, reference))
        mean, std = moments(self.data_preprocessor)
        return (out * std + mean).clamp(0, 255)

    @torch.no_grad()
    def matches(self, images: Tensor, reference: Tensor | Sequence[Tensor]
                ) -> tuple[Tensor, Tensor, Tensor]:
        """Find where in the references the textures of each pixel come from.

        Args:
            images: As for :meth:`restore`.
            reference: As for :meth:`restore`, at least one.

        Returns:
            The number of the reference (B, H, W); the row and the column
            (B, 2, H, W), in pixels of this reference, of the upper left corner of
            the 4x4 square at the centre of the best matching patch; and the
            similarity (B, 1, H, W), a cosine, by which the texture is weighted.

        Raises:
            TypeError: As :meth:`restore`.
            ValueError: A shape is wrong, or there is no reference.
        """
        inputs, references = self._normalised(images, reference)
        if not references:
            raise ValueError('reference must be at least one image, got none')
        _, similarity, index = self._match(inputs, references)
        number, position = torch.empty_like(index), index.new_empty(
            len(index), 2, *index.shape[1:])
        first = 0
        for i, one in enumerate(references):
            height, width = (side // SCALE for side in one.shape[2:])
            here = (index >= first) & (index < first + height * width)
            number[here] = i
            inside = SCALE * torch.stack(
                [(index - first) // width, (index - first) % width], dim=1)
            position = torch.where(here[:, None], inside, position)
            first += height * width
        return number, position, similarity

    def _normalised(self, images: Tensor,
                    reference: Tensor | Sequence[Tensor] | None
                    ) -> tuple[Tensor, list[Tensor] | None]:
        """Check and normalise the arguments of :meth:`restore`."""
        check_map('images', images, 3)
        mean, std = moments(self.data_preprocessor)
        if reference is None:
            return (images - mean) / std, None
        references = [reference] if isinstance(reference, Tensor) else list(reference)
        for x in references:
            check_map('reference', x, 3)
        return (images - mean) / std, [(x - mean) / std for x in references]

    def _references(self, data_samples: list[BaseDataElement] | None
                    ) -> list[Tensor] | None:
        """Return the normalised references of a batch: a list of one tensor.

        Raises:
            ValueError: Only some samples have one, or their sizes differ.
        """
        found = [sample.ref_img for sample in data_samples or ()
                 if 'ref_img' in sample]
        if not found:
            return None
        shapes = {tuple(image.shape) for image in found}
        if len(found) != len(data_samples) or len(shapes) > 1:
            raise ValueError('all images of a batch must have references of one size, '
                             f'got {len(found)} of {sorted(shapes)} for '
                             f'{len(data_samples)} images')
        return [self.data_preprocessor(dict(inputs=found))['inputs']]

    def _match(self, images: Tensor, references: list[Tensor]
               ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return textures per scale, smallest first, soft attention and index."""
        keys, values = [], []
        for reference in references:
            # Crop to multiples of 4, so that the maps of quarter size fit exactly.
            height, width = (side // SCALE * SCALE for side in reference.shape[2:])
            if len(reference) != len(images) or min(height, width) < PATCH * SCALE:
                raise ValueError(
                    f'reference must be ({len(images)}, 3, Hr, Wr) with sides of at '
                    f'least {PATCH * SCALE}, got {tuple(reference.shape)}')
            reference = reference[:, :, :height, :width]
            small = F.interpolate(
                reference, scale_factor=1 / SCALE, mode='bicubic', antialias=True)
            blurred = F.interpolate(small, (height, width), mode='bicubic')
            keys.append(self.textures(blurred)[-1])
            values.append(self.textures(reference)[::-1])
        enlarged = F.interpolate(images, scale_factor=SCALE, mode='bicubic')
        query = self.textures(enlarged)[-1]  # (B, C, H, W)
        return texture_transfer(
            query, keys, [list(scale) for scale in zip(*values)], PATCH)

    def _enlarge(self, images: Tensor, references: list[Tensor] | None
                 ) -> tuple[Tensor, list[Tensor]]:
        """Return enlarged images (B, 3, 4 * H, 4 * W), and the textures."""
        textures: list[Tensor] = []
        soft = None
        if references is not None:
            textures, soft, _ = self._match(images, references)
        x = self.head(images)
        maps = [x + self.first(x)]  # (B, C, H, W); later also 2 and 4 times as large
        for scale, (transformer, bodies) in enumerate(
                zip(self.transformers, self.bodies)):
            if scale:
                maps.append(self.enlarge[scale - 1](maps[-1]))
            if textures:
                maps[-1] = transformer(maps[-1], textures[scale], soft)
            read = self.integrations[scale - 1](maps) if scale else maps
            maps = [x + body(y) for x, body, y in zip(maps, bodies, read)]
        size = maps[-1].shape[2:]
        coarse = [path(F.interpolate(x, size, mode='bicubic'))
                  for path, x in zip(self.gather, maps)]
        out = self.tail(torch.cat([*coarse, maps[-1]], dim=1))
        if self.add_bicubic:
            out = out + F.interpolate(images, size, mode='bicubic')
        return out, textures
