"""What a row of a study is pre-trained on before it is trained."""

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
    """A row's ``pretrain``.

    Attributes:
        config: Of the pre-training: a path, or a file below configs/.
        images: Where its images are, below the folder of the study's data.
        length: Its epochs or iterations, whatever the config counts; None: the
            config's own.
        settings: What is merged into the config.
    """

    config: str
    images: str = '.'
    length: int | None = None
    settings: dict = field(default_factory=dict)

    def load(self, data_root: str | Path, seed: int) -> Config:
        """The config of a seed, for the folder of the study's data.

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
        """Let a config read its images below another folder."""
        dataset = config.train_dataloader.dataset
        while 'dataset' in dataset:  # repeated
            dataset = dataset.dataset
        dataset.data_root = str(Path(data_root) / self.images)


def pretrain(config: Config, mark: str, work_dir: Path,
             fresh: bool = False) -> dict[str, Any]:
    """Pre-train, go on with what was interrupted, or take what is finished.

    Args:
        config: Of the pre-training.
        mark: Fingerprint of its settings.
        work_dir: Its folder.
        fresh: Train again although something is there.

    Returns:
        The checkpoint, the steps, and the seconds that they took with loading of
        images: on the clock, and of this process on all cores.
    """
    out = work_dir / RESULT
    if out.is_file() and not fresh:
        found = json.loads(out.read_text(encoding='utf-8'))
        if found['settings'] == mark and (work_dir / found['checkpoint']).is_file():
            print(f'{out} is there', flush=True)
            return found
    out.unlink(missing_ok=True)
    config.work_dir = str(work_dir)
    runner = train_or_go_on(config, fresh, TrainingTime(loading=True))
    checkpoint = newest_checkpoint(work_dir, config.default_hooks.checkpoint)
    told = runner.message_hub.get_info
    found = dict(
        settings=mark,
        checkpoint=Path(checkpoint).name,
        steps=runner.iter,
        seconds=round(told(TrainingTime.KEY, 0.), 1),
        cpu_seconds=round(told(TrainingTime.CPU_KEY, 0.), 1))
    write_json(out, found)
    return found


def begin_with(config: Config, checkpoint: Path, out: Path) -> None:
    """Let a config begin with what its model takes of a pre-training.

    Raises:
        ValueError: The checkpoint is of another backbone, neck or head.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    transfer = convert_pretrained(checkpoint, out, config.copy())
    print(*transfer.lines(), sep='\n', flush=True)
    config.load_from = str(out)
