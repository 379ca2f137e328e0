"""Base class of the quickstart's tasks."""

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
        name: Value of ``--task``.
        flag: The flag that selects one of ``variants``, without its dashes.
        variants: Names of the variants; the first one is the default.
        work_dir: Work folder of the default variant.
        packages: Sources of the data.
        shown: The figures of the report, keys of ``summary.json``.
        picture: Name of the picture in the work folder.
        caption: Description of the picture.
        held_out: Description of the held-out tiles.
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
        """Load the shipped config of a variant."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Download and prepare the data if they are missing."""
        raise NotImplementedError

    def count_images(self, dataloader: dict) -> int:
        """Count the images of a split."""
        raise NotImplementedError

    def test(self, runner: Runner) -> dict:
        """Compute the figures of the held-out tiles."""
        raise NotImplementedError

    def draw(self, runner: Runner, path: Path) -> Path:
        """Draw some of the held-out tiles."""
        raise NotImplementedError

    def export(self, checkpoint: str, work_dir: Path) -> dict:
        """Convert the checkpoint; return further entries of ``summary.json``."""
        return {}

    def lines(self, summary: dict) -> list[str]:
        """Return further lines of the report."""
        return []

    def figures(self, found: dict) -> str:
        """Format the figures of the report."""
        return '  '.join(f'{name.upper()} {found[name]:.3f}' for name in self.shown)
