"""Train and evaluate one row of a study with one seed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import LOOPS
from mmengine.runner import Runner

from ...engine.resume import newest_checkpoint
from ...io.files import write_json
from ...openmmlab.models import load_config
from ..benchmark.measuring import environment
from ..common import config_folder
from ..complexity.command import complexity
from ..quickstart.mobilenet import prepare_mobilenet_v2
from ..quickstart.nuclei import prepare_nuclei
from ..quickstart.task import CACHE
from ..quickstart.trees import prepare_trees
from ..same_settings import TrainingTime, train_or_go_on
from .pretraining import Pretraining, load_pretrained, pretrain

# Keys of a row that are no settings of its config.
OPTIONS = ('after', 'baseline', 'pretrain', 'tests')
TEST = ('test_dataloader', 'test_evaluator', 'test_cfg')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
DATA = dict(trees=prepare_trees, nuclei=prepare_nuclei)


@dataclass(frozen=True)
class Study:
    """A config with a ``study``: its rows, metric and baseline.

    Attributes:
        name: Name of the config file without the suffix.
        config: The config of the baseline.
        title: Description of the metric.
        metric: Name of the metric in the evaluators' results; larger is better.
        baseline: The row that others are compared with.
        rows: Settings of each row, merged into the config. With
            ``pretrain=dict(config=..., ...)``, a :class:`Pretraining`, a row
            starts with the weights of a pre-training with the same seed. With
            ``after``, the name of another row, it starts with that row's trained
            weights of the same seed, and so does its pre-training. With
            ``tests``, a dict of settings by name, a trained row is also tested
            with these merged into its config; only :data:`TEST` can be set.
            ``baseline`` is the row it is compared with, if not the study's.
        shape: Height and width of the image for counting multiply-adds; None: they
            are not counted.
        factor: Factor of the metric in the table.
        data: Name in :data:`DATA` of the images that the command can download;
            None: the user provides them.
    """

    name: str
    config: Config
    title: str
    metric: str
    baseline: str
    rows: dict[str, dict]
    shape: tuple[int, int] | None = None
    factor: float = 1.
    data: str | None = None

    @classmethod
    def load(cls, name: str) -> Study:
        """Load a study by its name in configs/studies, or by a path.

        Raises:
            FileNotFoundError: There is no such study.
            ValueError: The config has no ``study``, an incomplete one, or a row
                with a wrong ``after`` or ``baseline``.
        """
        path = Path(name)
        if path.suffix != '.py':
            folder = config_folder('fpt_plugin') / 'studies'
            path = folder / f'{name}.py'
            if not path.is_file():
                known = sorted(p.stem for p in folder.glob('*.py'))
                raise FileNotFoundError(
                    f'the study must be one of {known} or the path of a '
                    f'config, got {name!r}')
        config = load_config(path)
        settings = config.pop('study', None)
        if not isinstance(settings, dict):
            raise ValueError(f'{path} must define study=dict(...), got '
                             f'{settings!r}')
        settings = settings.to_dict()
        try:
            study = cls(name=path.stem, config=config, **settings)
        except TypeError as error:
            raise ValueError(f'study of {path}: {error}') from error
        if study.baseline not in study.rows:
            raise ValueError(f'baseline must be one of the rows '
                             f'{list(study.rows)}, got {study.baseline!r}')
        if study.data is not None and study.data not in DATA:
            raise ValueError(f'data must be None or one of {list(DATA)}, got '
                             f'{study.data!r}')
        for row in study.rows:
            study.baseline_of(row)
            study.start_of(row)
        return study

    def config_of(self, row: str, seed: int) -> Config:
        """Return the config of a row and a seed.

        Raises:
            ValueError: There is no such row.
        """
        if row not in self.rows:
            raise ValueError(f'rows must be of {list(self.rows)}, got {row!r}')
        config = copy.deepcopy(self.config)  # a Runner changes its config
        settings = ConfigDict(self.rows[row]).to_dict()
        for name in OPTIONS:
            settings.pop(name, None)
        config.merge_from_dict(settings)
        config.randomness = dict(seed=seed)
        return config

    def tests_of(self, row: str, seed: int) -> dict[str, Config]:
        """Return the config of each additional test of a row, by name.

        Raises:
            ValueError: Settings are not of :data:`TEST`.
        """
        configs = {}
        for name, settings in (self.rows[row].get('tests') or {}).items():
            if not isinstance(settings, dict) or not set(settings) <= set(TEST):
                raise ValueError(f'tests of the row {row!r} must have dicts of {TEST}, '
                                 f'got {settings!r} for {name!r}')
            configs[name] = self.config_of(row, seed)
            configs[name].merge_from_dict(ConfigDict(settings).to_dict())
        return configs

    def baseline_of(self, row: str) -> str | None:
        """Return the row that a row is compared with; None for the study's baseline.

        Raises:
            ValueError: The row's ``baseline`` is no other row.
        """
        baseline = self.rows[row].get('baseline')
        if row == self.baseline and baseline is None:
            return None
        baseline = baseline or self.baseline
        if baseline not in self.rows or baseline == row:
            raise ValueError(f'baseline of the row {row!r} must be another of '
                             f'{list(self.rows)}, got {baseline!r}')
        return baseline

    def start_of(self, row: str) -> str | None:
        """Return the row whose trained weights a row starts with, if any.

        Raises:
            ValueError: The row's ``after`` is no other row, or one that has
                ``after`` too.
        """
        start = self.rows[row].get('after')
        first = [name for name, settings in self.rows.items()
                 if settings.get('after') is None]
        if start is not None and start not in first:
            raise ValueError(f'after of the row {row!r} must be one of {first}, '
                             f'got {start!r}')
        return start

    def pretraining_of(self, row: str) -> Pretraining | None:
        """Return the pre-training of a row; None if it has none.

        Raises:
            ValueError: The row's ``pretrain`` has wrong keys.
        """
        given = self.rows[row].get('pretrain')
        if given is None:
            return None
        try:
            return Pretraining(**given)
        except TypeError as error:
            raise ValueError(f'pretrain of the row {row!r}: {error}') from error

    def configs_of(self, row: str, seed: int) -> list[Config]:
        """Return the config of a row and a seed, then those of its start.

        These are the config of its pre-training, if any, and the configs of the
        row whose weights it starts with, if any.

        Raises:
            FileNotFoundError: The config of the pre-training does not exist.
            ValueError: There is no such row, or its ``pretrain`` is wrong.
        """
        config = self.config_of(row, seed)
        before, start = self.pretraining_of(row), self.start_of(row)
        configs = [config]
        if before is not None:
            configs.append(
                before.load(config.train_dataloader.dataset.data_root, seed))
            if start and not configs[1].model.get('keep_identity'):
                raise ValueError(f'pretrain of the row {row!r} must have '
                                 'model.keep_identity=True, because of after='
                                 f'{start!r}, got {before.config}')
        return configs + (self.configs_of(start, seed) if start else [])


def mark_of(study: Study, row: str, seed: int) -> str:
    """Hash all settings of a row and a seed: training, pre-training and tests."""
    configs = study.configs_of(row, seed)
    tests = study.tests_of(row, seed)
    return fingerprint(*configs, *tests.values(), names=tests)


def fingerprint(*configs: Config, names: Iterable[str] = ()) -> str:
    """Hash the settings, before the data folder and work folder are set."""
    text = ''.join([*(config.pretty_text for config in configs), *names])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(study: Study, row: str, seed: int, out: Path, work_dir: Path,
        data_root: str | None = None, fresh: bool = False) -> dict[str, Any]:
    """Train, evaluate on both splits, and write the result.

    Choices are made on ``val_dataloader`` (``choice``); the result on
    ``test_dataloader`` is reported (``report``).

    Args:
        study: The study.
        row: One of its rows.
        seed: Seed of weights, data order and augmentation.
        out: The JSON to write.
        work_dir: Folder of checkpoints and logs.
        data_root: Folder of the data; None: the config's.
        fresh: Train again even if a run exists, but not the row of ``after``.

    Returns:
        The content of ``out``.
    """
    mark = mark_of(study, row, seed)
    runner, found = train(study, row, seed, work_dir, data_root, fresh)
    tests = study.tests_of(row, seed)
    if data_root is not None:
        own = study.config_of(row, seed).test_dataloader.dataset.data_root
        for test in tests.values():  # unless it has other data
            if test.test_dataloader.dataset.data_root == own:
                test.test_dataloader.dataset.data_root = data_root
    choice = _figure(runner.val_loop.run(), study.metric)
    metrics = runner.test_loop.run()
    if tests:
        found['tests'] = {name: _test(runner, test) for name, test in tests.items()}
    figures = dict(choice=choice, report=_figure(metrics, study.metric))
    if study.shape is not None:
        cost = complexity(runner.model.cpu(), study.shape)
        found.update(macs=cost.total.macs, shape=list(study.shape))
    get_info, steps = runner.message_hub.get_info, max(1, runner.iter)
    device = 'cuda' if get_device() == 'cuda' else 'cpu'
    if device == 'cpu':  # independent of other processes, unlike the clock
        found['cpu_seconds_per_step'] = round(
            get_info(TrainingTime.CPU_KEY, 0.0) / steps, 4)
    result = dict(
        study=study.name,
        row=row,
        seed=seed,
        metric=study.metric,
        **figures,
        metrics=_numbers(metrics),
        curve=_curve(runner, study.metric),
        steps=runner.iter,
        seconds_per_step=round(get_info(TrainingTime.KEY, 0.0) / steps, 4),
        parameters=sum(p.numel() for p in runner.model.parameters()),
        **found,
        settings=mark,
        environment=environment(device))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    return result


def train(study: Study, row: str, seed: int, work_dir: Path,
          data_root: str | None = None, fresh: bool = False
          ) -> tuple[Runner, dict[str, Any]]:
    """Train a row with one seed, after its start; a finished run is only loaded.

    Args:
        study: See :func:`run`.
        row: See :func:`run`.
        seed: See :func:`run`.
        work_dir: See :func:`run`.
        data_root: See :func:`run`.
        fresh: See :func:`run`.

    Returns:
        The runner, and ``pretraining`` with its cost for rows with a pre-training.
    """
    config, *others = study.configs_of(row, seed)
    start, before = study.start_of(row), study.pretraining_of(row)
    if data_root is not None:
        for loader in LOADERS:
            config[loader].dataset.data_root = data_root
    elif study.data is not None:
        DATA[study.data](config.train_dataloader.dataset.data_root, CACHE)
    config.work_dir = str(work_dir)
    _prepare_weights(config)
    found, trained = {}, None
    if start is not None:
        folder = work_dir.parent / f'{start}-{seed}'
        train(study, start, seed, folder, data_root)
        trained = Path(newest_checkpoint(folder, config.default_hooks.checkpoint))
        config.load_from = str(trained)
    # What the row starts with; rows of the same pre-training share it.
    given = fingerprint(*others, names=[_digest(trained)] if trained else ()) \
        if others else None
    if before is not None:
        pretraining = others[0]
        if data_root is not None:
            before.move(pretraining, data_root)
        if trained is not None:
            pretraining.load_from = str(trained)
        folder = work_dir.parent / 'pretraining' / f'{given}-{seed}'
        found['pretraining'] = pretrain(pretraining, given, folder, fresh)
        load_pretrained(config, folder / found['pretraining']['checkpoint'],
                        work_dir / 'pretrained.pth', trained)
    return train_or_go_on(config, fresh, given=given), found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _test(runner: Runner, config: Config) -> dict[str, float]:
    """Test a trained model with the data and metrics of another config."""
    loop = LOOPS.build({'type': 'TestLoop', **config.test_cfg}, default_args=dict(
        runner=runner, dataloader=config.test_dataloader,
        evaluator=config.test_evaluator))
    return _numbers(loop.run())


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()
            if isinstance(value, Real)}


def _figure(metrics: dict[str, float], name: str) -> float:
    """Return one of an evaluator's metrics, with or without a prefix.

    Raises:
        ValueError: There is no metric of this name.
    """
    for key, value in metrics.items():
        if key == name or key.endswith(f'/{name}'):
            return float(value)
    raise ValueError(f'metric must be one of {sorted(metrics)}, got {name!r}')


def _curve(runner: Runner, name: str) -> list[float]:
    """Return the metric of each validation during training."""
    for key, scalars in runner.message_hub.log_scalars.items():
        if key == f'val/{name}' or (
                key.startswith('val/') and key.endswith(f'/{name}')):
            return [round(float(value), 4) for value in scalars.data[0]]
    return []


def _prepare_weights(config: Config) -> None:
    """Download the quickstart's ImageNet weights if the config names them."""
    init = (config.model.get('backbone') or {}).get('init_cfg') or {}
    path = Path(init.get('checkpoint') or '')
    if path.stem.startswith('mobilenet_v2') and not path.is_file():
        prepare_mobilenet_v2(path, CACHE, library=config.default_scope)
