"""The quickstart's pre-training on photographs without labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ...io.files import replacing
from ...openmmlab.models import load_config
from ...pretraining import UnlabelledImages
from ...pretraining.reconstruction_hook import draw_reconstructions
from ..common import config_folder
from ..convert_weights.pretrained import convert_pretrained
from .pictures import write_rows
from .task import CACHE, Task
from .trees import DEEPFOREST, prepare_trees

PICTURE_TILES = 4
LOSS = 'loss.png'


class Pretraining(Task):
    """A small Swin Transformer that reconstructs masked squares of photographs."""

    name = 'pretraining'
    config = 'quickstart/greenmim_swin-mini_trees.py'
    detector = 'quickstart/faster-rcnn_swin-mini_fpt_trees.py'
    flag = 'method'
    variants = ('greenmim', 'uniform', 'simmim')
    work_dir = 'work_dirs/quickstart-pretraining'
    packages = (DEEPFOREST, )
    shown = ('error', 'flat_error', 'explained')
    picture = 'reconstructions.png'
    caption = 'Tiles, their visible squares, and the reconstruction'
    held_out = 'from photographs of which other tiles are in the training set'

    def load(self, variant: str) -> Config:
        """Load the shipped config with the method of a variant."""
        cfg = load_config(config_folder('fpt_plugin') / self.config)
        if variant == 'uniform':
            cfg.model.sampling = 'uniform'
        if variant == 'simmim':
            cfg.model.type = 'SimMIM'
            del cfg.model.decoder
        return cfg

    def prepare(self) -> None:
        """Download the detector's photographs if they are missing."""
        prepare_trees('data/trees', CACHE)

    def count_images(self, dataloader: dict) -> int:
        """Count the images of the folder."""
        dataset = dataloader.dataset
        while 'dataset' in dataset:  # repeated
            dataset = dataset.dataset
        return len(UnlabelledImages(dataset.data_root))

    def test(self, runner: Runner) -> dict[str, float]:
        """Compute errors of the masked squares, with the same masks every time."""
        with _same_masks():
            metrics = runner.test()
        return {name: metrics[f'reconstruction/{name}'] for name in self.shown}

    def draw(self, runner: Runner, path: Path) -> Path:
        """Draw held-out tiles, and the training loss in a second file."""
        draw_loss(runner, path.with_name(LOSS))
        dataset = runner.test_loop.dataloader.dataset
        count = min(PICTURE_TILES, len(dataset))
        inputs = [dataset[i]['inputs'] for i in range(count)]
        runner.model.eval()
        with _same_masks(), torch.no_grad():
            picture = draw_reconstructions(runner.model, dict(inputs=inputs))
        return write_rows([picture[..., ::-1]], path)

    def export(self, checkpoint: str, work_dir: Path) -> dict:
        """Write the backbone for the quickstart's detector with this backbone."""
        transfer = convert_pretrained(
            checkpoint, work_dir / 'backbone.pth',
            config_folder('fpt_plugin') / self.detector)
        print('\n'.join(transfer.lines()), flush=True)
        return dict(backbone=str(transfer.out), usage=transfer.usage)

    def lines(self, summary: dict) -> list[str]:
        """Explain the figures and the use of the weights."""
        return [
            'FLAT_ERROR is the error of a flat guess: the mean colour of the '
            'visible squares, with the brightness and contrast of each masked '
            'square. simmim guesses without these two, so its figures are not '
            'comparable',
            f'Loss: {Path(summary["picture"]).with_name(LOSS)}',
            f'Backbone: {summary["backbone"]}, for a config with',
            *(f'    {line}' for line in summary['usage']),
            f'such as configs/{self.detector}'
        ]


def draw_loss(runner: Runner, path: Path) -> None:
    """Plot the loss of every step, also before a resume, and its moving mean."""
    from matplotlib.figure import Figure
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    width = max(1, len(losses) // 50)
    means = np.convolve(losses, np.full(width, 1 / width), 'valid')
    figure = Figure(figsize=(6, 3), layout='constrained')
    axes = figure.subplots()
    axes.plot(losses, color='lightgrey', linewidth=0.5)
    axes.plot(np.arange(len(means)) + (width - 1) / 2, means)
    axes.set_xlabel('step')
    axes.set_ylabel(f'loss, and mean of {width} steps', fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format='png')


@contextmanager
def _same_masks() -> Iterator[None]:
    """Seed torch's CPU generator, from which masks are drawn."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield
