"""Look-up, a synthetic data set that a plain pyramid cannot solve.

An image has three large patches, each with one colour and one of two textures,
and small discs of the same three colours, far from the patch of their colour.
The label of a disc is the texture of that patch; all other pixels are
unlabelled. A disc has no texture of its own. The network must find the patch by
its colour, beyond the receptive field of the backbone, and read its texture.
"""

from __future__ import annotations

import numpy as np
import torch
from mmcv.cnn import ConvModule
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModule
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from torch import Tensor, nn

from ...layers import LambdaLayer
from ...openmmlab.registry import register

COLOURS = np.array([[220, 60, 60], [60, 200, 80], [70, 90, 230]], np.float32)
TEXTURES = ('stripes', 'checks')
UNLABELLED = 255
# Cells of a 3 x 3 grid that can have patches. A disc lies two cells from the
# patch of its colour, which is impossible for the middle cell.
HOMES = [(row, column) for row in range(3) for column in range(3)
         if (row, column) != (1, 1)]


def draw_look_up(index: int, size: int = 192) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        index: Number of the image; equal indices give equal images.
        size: Height and width in pixels, a multiple of 3 of at least 96.

    Returns:
        Image (size, size, 3) and labels (size, size), both uint8. Labels are
        0 and 1 on the discs and 255 elsewhere.
    """
    rng = np.random.default_rng(index)
    cell, scale = size // 3, size / 192
    rows, columns = np.mgrid[:size, :size]
    image = rng.normal(128, 20, (size, size, 3)).astype(np.float32)
    labels = np.full((size, size), UNLABELLED, np.uint8)
    width = max(2, round(4 * scale))
    stripes = (rows + columns) // width % 2
    checks = (rows // width + columns // width) % 2
    homes = [HOMES[i] for i in rng.choice(len(HOMES), 3, replace=False)]
    textures = rng.integers(0, 2, 3)

    for colour, (row, column), texture in zip(COLOURS, homes, textures):
        patch = (slice(row * cell + width, (row + 1) * cell - width),
                 slice(column * cell + width, (column + 1) * cell - width))
        bright = (stripes, checks)[texture][patch][..., None]
        image[patch] = colour * (0.45 + 0.55 * bright) + rng.normal(
            0, 8, bright.shape[:2] + (3, ))

    centres: list[np.ndarray] = []
    for colour, home, texture in zip(COLOURS, homes, textures):
        far = [(row, column) for row in range(3) for column in range(3)
               if max(abs(row - home[0]), abs(column - home[1])) == 2
               and (row, column) not in homes]
        for _ in range(2):
            centre = _free_place(rng, far, cell, centres, 18 * scale)
            centres.append(centre)
            radius = rng.uniform(4, 6) * scale
            disc = (rows - centre[0])**2 + (columns - centre[1])**2 <= radius**2
            image[disc] = colour + rng.normal(0, 8, (disc.sum(), 3))
            labels[disc] = texture
    return image.clip(0, 255).astype(np.uint8), labels


def _free_place(rng: np.random.Generator, cells: list[tuple[int, int]],
                cell: int, taken: list[np.ndarray], gap: float) -> np.ndarray:
    """Draw a centre in one of the cells, ``gap`` pixels from all others."""
    while True:
        corner = np.array(cells[rng.integers(len(cells))])
        centre = (corner + rng.uniform(0.12, 0.88, 2)) * cell
        if all(np.hypot(*(centre - other)) > gap for other in taken):
            return centre


@register(TRANSFORMS)
class DrawLookUp(BaseTransform):
    """Draw the image of a sample's ``index``.

    Args:
        size: Height and width in pixels.
    """

    def __init__(self, size: int = 192) -> None:
        if not isinstance(size, int) or size < 96 or size % 3:
            raise ValueError('size must be a multiple of 3 of at least 96, got '
                             f'{size!r}')
        self.size = size

    def transform(self, results: dict) -> dict:
        """Add image and labels under the keys of the loading transforms."""
        image, labels = draw_look_up(results['index'], self.size)
        shape = image.shape[:2]
        return dict(
            results, img=image, gt_seg_map=labels, seg_fields=['gt_seg_map'],
            img_shape=shape, ori_shape=shape, img_path=f'{results["index"]}.png')


@register(DATASETS)
class LookUp(BaseDataset):
    """Images of Look-up.

    Args:
        first: Index of the first image; splits must not overlap.
        length: Number of images.
        **kwargs: BaseDataset's, such as the pipeline.
    """

    METAINFO = dict(
        classes=TEXTURES, palette=[[255, 160, 0], [0, 140, 255]])

    def __init__(self, first: int, length: int, **kwargs) -> None:
        self.first, self.length = first, length
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Return the indices."""
        return [dict(index=self.first + i) for i in range(self.length)]


@register(MODELS)
class LookUpBackbone(BaseModule):
    """Five 3x3 convolutions; maps at strides 4, 8, 16 and 32.

    The receptive field of the coarsest map is 63 pixels, after an FPN 127. In an
    image of 192 pixels it never contains both a disc and its patch.

    Args:
        deeper: Number of additional convolutions at stride 32. With six of them
            the receptive field covers the whole image.
        lambda_layers: Add a lambda layer at strides 16 and 32.
        init_cfg: Initialisation.
    """

    CHANNELS = (32, 48, 64, 64)

    def __init__(self, deeper: int = 0, lambda_layers: bool = False,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        widths = (3, 16, *self.CHANNELS)
        self.stages = nn.ModuleList(
            _convolution(a, b, 2) for a, b in zip(widths, widths[1:]))
        self.last = nn.Sequential(
            *(_convolution(64, 64, 1) for _ in range(deeper)))
        self.lambdas = nn.ModuleList(
            LambdaLayer(64, residual=True) for _ in range(2)
        ) if lambda_layers else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps of CHANNELS channels at strides 4 to 32."""
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i == len(self.stages) - 1:
                x = self.last(x)
            if self.lambdas is not None and i >= 3:
                x = torch.relu(self.lambdas[i - 3](x))
            maps.append(x)
        return tuple(maps[1:])


def _convolution(in_channels: int, out_channels: int,
                 stride: int) -> ConvModule:
    return ConvModule(in_channels, out_channels, 3, stride, 1,
                      norm_cfg=dict(type='BN'))
