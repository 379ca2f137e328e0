"""Pre-training of small models by the functions of the tools."""

from __future__ import annotations

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from torch import Tensor

from fpt_plugin.commands import train as train_command
from fpt_plugin.engine import running
from helpers.masked_swins import SMALL, green_mim, sim_mim
from helpers.processes import train_in_ddp
from helpers.runs import alone, options_of
from helpers.shipped_configs import CONFIGS

CONFIG = CONFIGS / 'pretraining/greenmim_swin-mini-p4-w7_1xb16-2k_192.py'


def draw_images(folder: Path, count: int = 6) -> Path:
    """Write images of noise in several sizes, some of them in a subfolder."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = rng.integers(256, size=(40 + 8 * i, 64, 3), dtype=np.uint8)
        mmcv.imwrite(image, str(folder / ('inside' * (i % 2)) / f'{i}.png'))
    return folder


def disc_image(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw discs on a plain background, (H, W, 3) uint8."""
    image = np.full((*size, 3), rng.integers(256, size=3), np.uint8)
    for _ in range(8):
        cv2.circle(image, rng.integers(min(size), size=2).tolist(), 10,
                   rng.integers(256, size=3).tolist(), -1)
    return image


def options(images: Path, iterations: int = 4) -> list[str]:
    return options_of(dict(
        train_dataloader=dict(
            num_workers=0, persistent_workers=False, batch_size=2,
            dataset=dict(data_root=images, pipeline={1: dict(scale=64)})),
        model=dict(backbone=dict(embed_dims=8, num_heads=(1, 2, 2, 4)), decoder=SMALL),
        train_cfg=dict(max_iters=iterations), randomness=dict(seed=3),
        default_hooks=dict(checkpoint=dict(interval=2)),
        custom_hooks={0: dict(interval=2)}))


@alone()
def train(work_dir: Path, *more: str, flags: tuple = (), config: Path = CONFIG):
    """Train; return the runner."""
    args = train_command.parser().parse_args([
        str(config), '--work-dir', str(work_dir), *flags, '--cfg-options', *more])
    return running.run_training(train_command.prepare_training(args))


def in_two_processes(kind: str, steps: int = 3) -> tuple[list, list[Tensor]]:
    """Train under DDP, which finds unused parameters; return masks and parameters."""
    model = sim_mim() if kind == 'simmim' else green_mim(sampling=kind)
    masks, draw = [], model.draw

    def kept(*args):
        masks.append(draw(*args))
        return masks[-1]

    model.draw = kept
    torch.manual_seed(5)  # the same in all processes
    batches = ((torch.randn(2, 3, 96, 128), ) for _ in range(steps))
    parameters = train_in_ddp(model, batches, 1e-3)
    return [m.tolist() for m in masks], parameters
