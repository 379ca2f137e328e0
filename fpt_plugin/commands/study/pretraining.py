"""Pre-training that comes before the training of a study's row."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ...engine.resume import newest_checkpoint
from ...io.files import write_json
from ...openmmlab.models import load_config
from ..common import config_folder
from ..convert_weights.pretrained import convert_pretrained
from ..same_settings import TrainingTime, rescale_schedule, train_or_go_on

RESULT = 'pretraining.json'


@dataclass(frozen=True)
class Pretraining:
    """Settings of a row's ``pretrain``.

    Attributes:
        config: Config of the pre-training: a path, or a file below configs/.
        images: Folder of its images, relative to the study's data.
        length: Number of epochs or iterations, as the config counts; None: the
            config's own.
        settings: Settings to merge into the config.
    """

    config: str
    images: str = '.'
    length: int | None = None
    settings: dict = field(default_factory=dict)

    def load(self, data_root: str | Path, seed: int) -> Config:
        """Load the config for a seed and the folder of the study's data.

        Raises:
            FileNotFoundError: There is no such config.
            ValueError: ``length`` is less than 1.
        """
        path = Path(self.config)
        if not path.is_file():
            path = config_folder('fpt_plugin') / self.config
        config = load_config(path)
        config.merge_from_dict(ConfigDict(self.settings).to_dict())
        if self.length is not None:
            if self.length < 1:
                raise ValueError(
                    f'length of pretrain must be at least 1, got {self.length}')
            rescale_schedule(config, self.length)
        config.randomness = dict(seed=seed)
        self.move(config, data_root)
        return config

    def move(self, config: Config, data_root: str | Path) -> None:
        """Set the data folder of a config, in place."""
        dataset = config.train_dataloader.dataset
        while 'dataset' in dataset:  # repeated
            dataset = dataset.dataset
        dataset.data_root = str(Path(data_root) / self.images)


def pretrain(config: Config, mark: str, work_dir: Path,
             fresh: bool = False) -> dict[str, Any]:
    """Pre-train, resume an interrupted run, or reuse a finished one.

    Args:
        config: Config of the pre-training.
        mark: Fingerprint of its settings.
        work_dir: Folder of the run.
        fresh: Train again even if a run exists.

    Returns:
        The checkpoint, the number of steps, and their duration including the
        loading of images: wall-clock seconds, and CPU seconds of this process.
    """
    out = work_dir / RESULT
    if out.is_file() and not fresh:
        found = json.loads(out.read_text(encoding='utf-8'))
        if found['settings'] == mark and (work_dir / found['checkpoint']).is_file():
            print(f'{out} is finished', flush=True)
            return found
    out.unlink(missing_ok=True)
    config.work_dir = str(work_dir)
    runner = train_or_go_on(config, fresh, TrainingTime(loading=True))
    checkpoint = newest_checkpoint(work_dir, config.default_hooks.checkpoint)
    get_info = runner.message_hub.get_info
    found = dict(
        settings=mark,
        checkpoint=Path(checkpoint).name,
        steps=runner.iter,
        seconds=round(get_info(TrainingTime.KEY, 0.), 1),
        cpu_seconds=round(get_info(TrainingTime.CPU_KEY, 0.), 1))
    write_json(out, found)
    return found


def load_pretrained(config: Config, checkpoint: Path, out: Path,
                    trained: Path | None = None) -> None:
    """Convert a pre-trained checkpoint and set it as the config's ``load_from``.

    Args:
        config: Config of the row, changed in place.
        checkpoint: Checkpoint of the pre-training.
        out: The converted checkpoint to write.
        trained: The trained model with the plain pyramid that the pre-trained
            branches are added to, if any.

    Raises:
        ValueError: The checkpoint does not fit the backbone, neck or head.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    transfer = convert_pretrained(
        checkpoint, out, config.copy(), onto=trained)
    print(*transfer.lines(), sep='\n', flush=True)
    config.load_from = str(out)
