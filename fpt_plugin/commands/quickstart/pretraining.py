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
    """A small Swin Transformer that fills in hidden squares of photographs."""

    name = 'pretraining'
    config = 'quickstart/greenmim_swin-mini_trees.py'
    detector = 'quickstart/faster-rcnn_swin-mini_fpt_trees.py'
    flag = 'method'
    variants = ('greenmim', 'uniform', 'simmim')
    work_dir = 'work_dirs/quickstart-pretraining'
    packages = (DEEPFOREST, )
    shown = ('error', 'flat_error', 'explained')
    picture = 'reconstructions.png'
    caption = 'Tiles, what the model saw of them, and what it made of that'
    held_out = 'of photographs of which other tiles were trained on'

    def load(self, variant: str) -> Config:
        """The shipped config with a method."""
        cfg = load_config(config_folder('fpt_plugin') / self.config)
        if variant == 'uniform':
            cfg.model.sampling = 'uniform'
        if variant == 'simmim':
            cfg.model.type = 'SimMIM'
            del cfg.model.decoder
        return cfg

    def prepare(self) -> None:
        """Fetch the detector's photographs, unless they are there."""
        prepare_trees('data/trees', CACHE)

    def count_images(self, dataloader: dict) -> int:
        """Images of the folder."""
        dataset = dataloader.dataset
        while 'dataset' in dataset:  # repeated
            dataset = dataset.dataset
        return len(UnlabelledImages(dataset.data_root))

    def test(self, runner: Runner) -> dict[str, float]:
        """Errors of the hidden squares, under the same masks every time."""
        with _same_masks():
            metrics = runner.test()
        return {name: metrics[f'reconstruction/{name}'] for name in self.shown}

    def draw(self, runner: Runner, path: Path) -> Path:
        """Draw held-out tiles, and beside them the loss of the training."""
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
        """What the figures mean, and what to do with the weights."""
        return [
            'The flat guess is the mean colour of the visible squares, with the '
            'brightness and contrast of each hidden one but for simmim, whose '
            'figures do not compare with the others',
            f'Loss: {Path(summary["picture"]).with_name(LOSS)}',
            f'Backbone: {summary["backbone"]}, for a config with',
            *(f'    {line}' for line in summary['usage']),
            f'such as configs/{self.detector}'
        ]


def draw_loss(runner: Runner, path: Path) -> None:
    """Draw the loss of every step, resumed ones included, and its course."""
    from matplotlib.figure import Figure
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    width = max(1, len(losses) // 50)
    means = np.convolve(losses, np.full(width, 1 / width), 'valid')
    figure = Figure(figsize=(6, 3), layout='constrained')
    axes = figure.subplots()
    axes.plot(losses, color='lightgrey', linewidth=0.5)
    axes.plot(np.arange(len(means)) + (width - 1) / 2, means)
    axes.set_xlabel('step')
    axes.set_ylabel(f'loss, and means of {width} steps', fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format='png')


@contextmanager
def _same_masks() -> Iterator[None]:
    """Masks follow torch's random numbers on the CPU."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield
