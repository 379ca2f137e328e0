"""IPT: one transformer for denoising, deraining and super-resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional.checks import accumulation_dtype
from ..functional.contrastive import patch_contrastive_loss
from ..functional.squares import join_squares, split_squares
from ..layers.checks import check_flags, check_map
from ..openmmlab.registry import register
from .blocks import ResidualBlock
from .crops import in_crops
from .degradations import TASKS, check_tasks
from .pixels import RGB, moments, to_pixels
from .transformer import Transformer


def make_head(channels: int) -> nn.Sequential:
    """Build a task's head, from RGB (B, 3, H, W) to (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), ResidualBlock(channels, 5),
        ResidualBlock(channels, 5))


def make_tail(channels: int, scale: int) -> nn.Sequential:
    """Build a task's tail, from (B, C, H, W) to RGB (B, 3, scale * H, scale * W)."""
    # Scale 4 is two steps of 2.
    steps = [2, 2] if scale == 4 else [scale] if scale > 1 else []
    layers: list[nn.Module] = []
    for step in steps:
        layers += [nn.Conv2d(channels, channels * step**2, 3, padding=1),
                   nn.PixelShuffle(step)]
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))


class IPTNet(nn.Module):
    """Heads, shared transformer and tails of the Image Processing Transformer.

    Tokens are patches of a task's features. The task's embedding is added to the
    queries of the decoder (https://arxiv.org/abs/2012.00364, Sec. 3.1).

    Args:
        tasks: Names of tasks, such as ``'noise50'`` and ``'sr2'``.
        channels: Channels of heads and tails.
        patch: Side of a patch in pixels.
        crop: Side of the images, a multiple of ``patch``.
        depth: Number of layers of the encoder, and of the decoder.
        num_heads: Number of attention heads, a divisor of ``channels * patch**2``.
        mlp_ratio: Width of the MLPs divided by that of the tokens.

    Raises:
        ValueError: An argument does not fit another one.
    """

    def __init__(self,
                 tasks: Sequence[str] = tuple(TASKS),
                 channels: int = 64,
                 patch: int = 3,
                 crop: int = 48,
                 depth: int = 12,
                 num_heads: int = 12,
                 mlp_ratio: float = 4.) -> None:
        super().__init__()
        embed_dims = channels * patch**2
        if crop % patch:
            raise ValueError(f'crop must be a multiple of patch={patch}, got {crop}')
        if embed_dims % num_heads:
            raise ValueError('num_heads must divide channels * patch**2 = '
                             f'{embed_dims}, got {num_heads}')
        self.crop, self.patch = crop, patch
        tokens = (crop // patch)**2
        self.heads = nn.ModuleDict({task: make_head(channels) for task in tasks})
        self.tails = nn.ModuleDict(
            {task: make_tail(channels, TASKS[task].scale) for task in tasks})
        self.positions = nn.Parameter(torch.empty(tokens, embed_dims))
        self.task_embeddings = nn.ParameterDict(
            {task: nn.Parameter(torch.empty(tokens, embed_dims)) for task in tasks})
        for embedding in (self.positions, *self.task_embeddings.values()):
            nn.init.trunc_normal_(embedding, std=0.02)
        self.transformer = Transformer(embed_dims, depth, num_heads, mlp_ratio)

    def forward(self, images: Tensor, task: str) -> tuple[Tensor, Tensor]:
        """Restore images of one size.

        Args:
            images: (B, 3, crop, crop), normalised.
            task: One of the tasks.

        Returns:
            The restored images (B, 3, scale * crop, scale * crop), and the
            decoder's tokens (B, N, C).
        """
        x = self._to_tokens(self.heads[task](images))  # (B, N, C)
        x = self.transformer(x + self.positions, self.task_embeddings[task])
        return self.tails[task](self._to_maps(x)), x

    def _to_tokens(self, maps: Tensor) -> Tensor:
        """Split (B, C, H, W) into patches (B, N, C * patch * patch), row by row."""
        return split_squares(maps, self.patch).flatten(3).flatten(1, 2)

    def _to_maps(self, tokens: Tensor) -> Tensor:
        """Join the patches of ``_to_tokens`` into maps (B, C, H, W)."""
        rows = isqrt(tokens.shape[1])
        x = tokens.unflatten(2, (-1, self.patch, self.patch))  # (B, N, C, p, p)
        return join_squares(x.unflatten(1, (rows, rows)))


@register(MODELS)
class IPT(BaseModel):
    """Image Processing Transformer: one transformer for many restoration tasks.

    Each task has a head and a tail; all tasks share the transformer, which has an
    embedding of each task (https://arxiv.org/abs/2012.00364). The loss is L1 plus
    the contrastive loss of the decoder's patches. Images come from the transform
    :class:`~fpt_plugin.Degrade` and have one size before enlargement;
    ``collate_fn=dict(type='one_task_collate', ...)`` makes batches of one task.

    Args:
        tasks: Names of tasks, see :class:`~fpt_plugin.Degrade`.
        channels: Channels of heads and tails.
        patch: Side of a patch in pixels.
        crop: Side of the images, a multiple of ``patch``.
        depth: Number of layers of the encoder, and of the decoder.
        num_heads: Number of attention heads, a divisor of ``channels * patch**2``.
        mlp_ratio: Width of the MLPs divided by that of the tokens.
        contrastive_weight: Weight of the contrastive loss; 0: none.
        add_bicubic: Whether enlarging tails predict the difference to bicubic
            enlargement.
        overlap: Pixels that crops of a larger image share in :meth:`restore`.
        data_preprocessor: mmengine's ImgDataPreprocessor for RGB images; None:
            convert files to RGB in [-1, 1].
        init_cfg: See BaseModel.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A task is unknown, or sizes do not fit.

    Example:
        >>> model = IPT(channels=16, depth=2, num_heads=4)
        >>> model.restore(255 * torch.rand(1, 3, 40, 90), 'sr2').shape
        torch.Size([1, 3, 80, 180])
    """

    def __init__(self,
                 tasks: str | Sequence[str] = tuple(TASKS),
                 channels: int = 64,
                 patch: int = 3,
                 crop: int = 48,
                 depth: int = 12,
                 num_heads: int = 12,
                 mlp_ratio: float = 4.,
                 contrastive_weight: float = 0.1,
                 add_bicubic: bool = False,
                 overlap: int = 12,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(data_preprocessor or RGB, init_cfg)
        check_flags(add_bicubic=add_bicubic)
        if contrastive_weight < 0:
            raise ValueError('contrastive_weight must not be negative, got '
                             f'{contrastive_weight}')
        if not 0 <= overlap < crop:
            raise ValueError(f'overlap must be in [0, crop={crop}), got {overlap}')
        self.tasks = check_tasks(tasks)
        self.contrastive_weight = contrastive_weight
        self.add_bicubic, self.overlap = add_bicubic, overlap
        self.net = IPTNet(
            self.tasks, channels, patch, crop, depth, num_heads, mlp_ratio)

    def forward(self,
                inputs: Tensor,
                data_samples: list[BaseDataElement] | None = None,
                mode: str = 'tensor'
                ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Restore images.

        Args:
            inputs: (B, 3, H, W), degraded, normalised; for ``'loss'`` (B, 3, crop,
                crop).
            data_samples: One per image, with its ``task`` (optional for a model of
                one task) and, except for ``'tensor'``, ``gt_img``, the clean image
                (3, s * H, s * W) in 0..255.
            mode: ``'loss'``: a dict of losses; ``'tensor'``: images of one task
                (B, 3, s * H, s * W), normalised; ``'predict'``: the samples with
                ``pred_img`` (3, s * H, s * W) in 0..255, not rounded.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: ``mode``, a shape or a task is wrong.
        """
        check_map('inputs', inputs, 3)
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode not in ('tensor', 'predict'):
            raise ValueError("mode must be 'loss', 'tensor' or 'predict', "
                             f'got {mode!r}')
        groups = list(self._by_task(inputs, data_samples))
        if mode == 'tensor':
            if len(groups) > 1:
                raise ValueError("images of mode='tensor' must have one task, got "
                                 f'{[task for task, _ in groups]}')
            return self._restore_any_size(inputs, groups[0][0])
        for task, chosen in groups:
            images = to_pixels(
                self.data_preprocessor, self._restore_any_size(inputs[chosen], task))
            for i, image in zip(chosen, images):
                data_samples[i].pred_img = image
        return data_samples

    def loss(self, inputs: Tensor,
             data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Compare restored images with clean ones, task by task."""
        if inputs.shape[2:] != (self.net.crop, ) * 2:
            raise ValueError('images must be (B, 3, crop, crop) with crop='
                             f'{self.net.crop}, got {tuple(inputs.shape)}')
        dtype = accumulation_dtype(inputs)
        losses = dict(loss_l1=inputs.new_zeros((), dtype=dtype))
        if self.contrastive_weight:
            losses['loss_contrastive'] = inputs.new_zeros((), dtype=dtype)
        for task, chosen in self._by_task(inputs, data_samples):
            target = self.data_preprocessor(dict(
                inputs=[data_samples[i].gt_img for i in chosen]))['inputs']
            restored, tokens = self._restore_crops(inputs[chosen], task)
            if target.shape != restored.shape:
                raise ValueError(
                    f'clean images of {task} must be {tuple(restored.shape)}, got '
                    f'{tuple(target.shape)}')
            weight = len(chosen) / len(inputs)
            losses['loss_l1'] += weight * F.l1_loss(
                restored.to(dtype), target.to(dtype))
            if self.contrastive_weight:
                losses['loss_contrastive'] += (
                    weight * self.contrastive_weight * patch_contrastive_loss(tokens))
        return losses

    @torch.no_grad()
    def restore(self, images: Tensor, task: str, flips: bool = False) -> Tensor:
        """Restore images of any size.

        Larger images are restored in overlapping crops, smaller ones are padded.

        Args:
            images: (B, 3, H, W), RGB, in 0..255.
            task: One of the model's tasks.
            flips: Whether to average over the eight flips and rotations by 90
                degrees.

        Returns:
            (B, 3, s * H, s * W) in 0..255, not rounded.

        Raises:
            TypeError: ``images`` is no batch of floating point images.
            ValueError: The task is not one of the model's, or a shape is wrong.
        """
        check_map('images', images, 3)
        self._check_task(task)
        mean, std = moments(self.data_preprocessor)
        x = (images - mean) / std
        turns = [(turn, flip) for turn in range(4 if flips else 1)
                 for flip in ((False, True) if flips else (False, ))]
        total = 0.
        for turn, flip in turns:
            y = x.rot90(turn, (2, 3))
            y = self._restore_any_size(y.flip(3) if flip else y, task)
            total = total + (y.flip(3) if flip else y).rot90(-turn, (2, 3))
        return (total / len(turns) * std + mean).clamp(0, 255)

    def _restore_crops(self, images: Tensor, task: str) -> tuple[Tensor, Tensor]:
        """Restore crops (B, 3, crop, crop); also return the decoder's tokens."""
        restored, tokens = self.net(images, task)
        scale = TASKS[task].scale
        if self.add_bicubic and scale > 1:
            restored = restored + F.interpolate(
                images, scale_factor=scale, mode='bicubic')
        return restored, tokens

    def _restore_any_size(self, images: Tensor, task: str) -> Tensor:
        """Map normalised images (B, 3, H, W) to (B, 3, s * H, s * W)."""
        return in_crops(
            lambda crops: self._restore_crops(crops, task)[0], images,
            self.net.crop, self.overlap, TASKS[task].scale)

    def _by_task(self, inputs: Tensor, data_samples: list[BaseDataElement] | None
                 ) -> Iterator[tuple[str, list[int]]]:
        """Yield each task of a batch, and the indices of its images.

        Raises:
            ValueError: The number of samples differs from that of the images, or
                a task is not one of the model's.
        """
        if data_samples is None and len(self.tasks) == 1:
            yield self.tasks[0], list(range(len(inputs)))
            return
        if data_samples is None or len(data_samples) != len(inputs):
            given = 'None' if data_samples is None else len(data_samples)
            raise ValueError('data_samples must have the task of each of the '
                             f'{len(inputs)} images, got {given}')
        only = self.tasks[0] if len(self.tasks) == 1 else None
        names = [sample.get('task', only) for sample in data_samples]
        for name in dict.fromkeys(names):
            self._check_task(name)
            yield name, [i for i, other in enumerate(names) if other == name]

    def _check_task(self, task: str) -> None:
        if task not in self.tasks:
            raise ValueError(f'task must be one of {self.tasks}, got {task!r}')
