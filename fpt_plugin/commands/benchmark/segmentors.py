"""Cases of segmentors: inference at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...openmmlab.models import load_config
from ..common import load_model
from .measuring import Case


@dataclass(frozen=True)
class SegmentorCase(Case):
    """Logits of an image, as a segmentor's ``predict`` computes them.

    Attributes:
        mode: ``'whole'``, or ``'slide'``: overlapping windows of the config, or
            of a 769x769 config if it has none.
        configs: Files, or names such as ``mmseg::FILE``.
        shape: Height and width of the image.
    """

    passes: ClassVar[tuple[str, ...]] = ('forward', )
    mode: str = 'whole'
    configs: tuple[str, ...] = ()
    shape: tuple[int, int] = (1024, 2048)
    batch: int = 1

    def candidates(self) -> tuple[str, ...]:
        """Return the names of the configs."""
        return tuple(Path(config.rpartition('::')[2]).stem
                     for config in self.configs)

    def prepare(self, candidate: str) -> tuple[nn.Module, Tensor]:
        """Build the segmentor with random weights, and an image."""
        config = self.configs[self.candidates().index(candidate)]
        cfg = load_config(config)
        cfg.model.pop('pretrained', None)
        test = cfg.model.setdefault('test_cfg', {})
        if self.mode == 'slide' and test.get('crop_size') is None:
            test.update(crop_size=(769, 769), stride=(513, 513))
        test.mode = self.mode
        torch.manual_seed(0)
        model, _ = load_model(cfg)
        model.to(self.device, getattr(torch, self.dtype)).eval()
        return model, self._randn(self.batch, 3, *self.shape, seed=0)

    def leaves(self, state: tuple[nn.Module, Tensor]) -> list[Tensor]:
        """Return no tensors: there is no backward pass."""
        return []

    def run(self, candidate: str,
            state: tuple[nn.Module, Tensor]) -> Sequence[Tensor]:
        """Compute logits (B, classes, H, W)."""
        model, image = state
        meta = dict(img_shape=self.shape, ori_shape=self.shape)
        with torch.no_grad():
            return model.inference(image, [meta] * self.batch)

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            shape=self.shape, mode=self.mode, batch=self.batch,
            dtype=self.dtype)
