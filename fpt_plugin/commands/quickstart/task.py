"""What the quickstart can train."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mmengine.config import Config
from mmengine.runner import Runner

from .packages import Package

CACHE = 'data/packages'


class Task:
    """Data, config, figures and picture of one training.

    Attributes:
        name: Of ``--task``.
        flag: The flag that chooses one of ``variants``, without its dashes.
        variants: What can be trained; the first one is the default.
        work_dir: Where the default keeps its run.
        packages: Where the data come from.
        shown: The figures of the report, keys of ``summary.json``.
        picture: Name of the picture in the work folder.
        caption: What it shows.
        held_out: What the tiles are that the figures are of.
    """

    name: ClassVar[str]
    flag: ClassVar[str] = 'neck'
    variants: ClassVar[tuple[str, ...]]
    work_dir: ClassVar[str]
    packages: ClassVar[tuple[Package, ...]]
    shown: ClassVar[tuple[str, ...]]
    picture: ClassVar[str]
    caption: ClassVar[str]
    held_out: ClassVar[str]

    def load(self, variant: str) -> Config:
        """The shipped config of a variant."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Fetch what is trained on, unless it is there."""
        raise NotImplementedError

    def count_images(self, dataloader: dict) -> int:
        """Images of a split."""
        raise NotImplementedError

    def test(self, runner: Runner) -> dict:
        """Figures of the held-out tiles."""
        raise NotImplementedError

    def draw(self, runner: Runner, path: Path) -> Path:
        """Draw some of the held-out tiles."""
        raise NotImplementedError

    def export(self, checkpoint: str, work_dir: Path) -> dict:
        """Write what is made of the checkpoint; entries of ``summary.json``."""
        return {}

    def lines(self, summary: dict) -> list[str]:
        """More lines of the report."""
        return []

    def figures(self, found: dict) -> str:
        """The figures of the report, by name."""
        return '  '.join(f'{name.upper()} {found[name]:.3f}' for name in self.shown)
