"""Pre-training of small models by the tools' own functions."""

from __future__ import annotations

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.model import MMDistributedDataParallel
from torch import Tensor

from fpt_plugin.commands import train as train_command
from fpt_plugin.engine import running
from helpers.masked_swins import SMALL, green_mim, sim_mim
from helpers.runs import alone
from helpers.shipped_configs import CONFIGS

CONFIG = CONFIGS / 'pretraining/greenmim_swin-mini-p4-w7_1xb16-2k_192.py'


def draw_images(folder: Path, count: int = 6) -> Path:
    """Images of noise of several sizes, some in a folder inside."""
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
    return [
        f'train_dataloader.dataset.data_root={images}',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_dataloader.batch_size=2',
        'train_dataloader.dataset.pipeline.1.scale=64',
        'model.backbone.embed_dims=8',
        'model.backbone.num_heads=(1,2,2,4)',
        *(f'model.decoder.{key}={value}' for key, value in SMALL.items()),
        f'train_cfg.max_iters={iterations}',
        'default_hooks.checkpoint.interval=2',
        'custom_hooks.0.interval=2',
        'randomness.seed=3',
    ]


@alone()
def train(work_dir: Path, *more: str, flags: tuple = (), config: Path = CONFIG):
    """Train; the runner."""
    args = train_command.parser().parse_args([
        str(config), '--work-dir', str(work_dir), *flags, '--cfg-options', *more])
    return running.run_training(train_command.prepare_training(args))


def in_two_processes(kind: str, steps: int = 3) -> tuple[list, list[Tensor]]:
    """Masks and parameters of training under DDP, which finds unused parameters."""
    model = sim_mim() if kind == 'simmim' else green_mim(sampling=kind)
    masks, draw = [], model.draw

    def kept(*args):
        masks.append(draw(*args))
        return masks[-1]

    model.draw = kept
    parallel = MMDistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    torch.manual_seed(5)  # the same in all processes
    for _ in range(steps):
        loss = parallel(torch.randn(2, 3, 96, 128), mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [m.tolist() for m in masks], [p.detach() for p in model.parameters()]
