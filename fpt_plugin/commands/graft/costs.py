"""Measure the cost of a graft: both models side by side, part by part."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings
from rich.table import Table
from torch import Tensor, nn

from ...openmmlab.models import (
    build_model,
    data_samples,
    describe,
    image_channels,
    unwrapped,
)
from ..benchmark.measuring import Case, median_and_spread, peak_in_fresh_process
from ..common import image_shape
from ..complexity.command import complexity, model_labels
from ..complexity.report import CONVENTION, Complexity

BOTH = ('plain', 'grafted')
TOTAL = 'total'


@dataclass(frozen=True)
class Costs:
    """Costs of both models.

    Attributes:
        shape: Height and width of the image.
        counts: Parameters, multiply-adds and memory saved for backward, by model.
        seconds: Median time of a forward pass by model and part; the whole model
            is :data:`TOTAL`.
        peak_bytes: Extra memory of a forward pass by model; empty if not
            measured.
        timed: Description of the timed parts.
    """

    shape: tuple[int, int]
    counts: dict[str, Complexity]
    seconds: dict[str, dict[str, float]]
    peak_bytes: dict[str, int]
    timed: str

    @property
    def time_ratio(self) -> float:
        """Forward time of the graft divided by that of the plain model."""
        plain, grafted = (self.seconds[name][TOTAL] for name in BOTH)
        return grafted / plain

    def to_dict(self) -> dict:
        """Return the costs as plain types for JSON."""
        return dict(
            shape=list(self.shape),
            counts={name: c.to_dict() for name, c in self.counts.items()},
            seconds=self.seconds,
            peak_bytes=self.peak_bytes,
            timed=self.timed,
            time_ratio=self.time_ratio)

    def table(self) -> Table:
        """Return a table with a row for each part and values of both models."""
        height, width = self.shape
        caption = [CONVENTION, f'Time: {self.timed}; medians.']
        if self.peak_bytes:
            plain, grafted = (self.peak_bytes[name] for name in BOTH)
            caption.append(
                f'Peak extra memory of a forward pass: {_mib(plain)} MiB '
                f'and {_mib(grafted)} MiB ({grafted / max(plain, 1):.2f}x).')
        table = Table(
            title=f'plain | grafted, one image of {height}x{width}',
            caption='\n'.join(caption),
            caption_justify='left')
        table.add_column('part', no_wrap=True)
        for name in ('10^6 parameters', 'GMACs', 'saved, MiB', 'time, ms',
                     'ratio'):
            table.add_column(name, justify='right')
        for name in self._names():
            if name == TOTAL:
                table.add_section()
            table.add_row(name, *self._row(name))
        return table

    def _names(self) -> list[str]:
        names = dict.fromkeys(
            part.name for c in reversed(list(self.counts.values()))
            for part in c.parts)
        return [*names, TOTAL]

    def _row(self, name: str) -> list[str]:
        parts = []
        for c in self.counts.values():
            found = [p for p in c.parts if p.name == name]
            parts.append(c.total if name == TOTAL else
                         found[0] if found else None)
        times = [self.seconds[model].get(name) for model in BOTH]
        plain, grafted = times
        ratio = f'{grafted / plain:.2f}x' if plain and grafted else ''
        return [
            _pair(p and f'{p.parameters / 1e6:,.2f}' for p in parts),
            _pair(p and (None if p.macs is None else f'{p.macs / 1e9:,.2f}')
                  for p in parts),
            _pair(p and (None if p.saved_bytes is None else
                         f'{p.saved_bytes / 2**20:,.0f}') for p in parts),
            _pair(s and f'{1e3 * s:,.0f}' for s in times), ratio
        ]


def _pair(texts) -> str:
    return ' | '.join(text or '-' for text in texts)


def _mib(size: int) -> str:
    return f'{size / 2**20:,.0f}'


def costs(plain: Config,
          grafted: Config,
          shape: Sequence[int] | None = None,
          repeats: int = 5,
          memory: bool = True) -> Costs:
    """Measure the costs of a plain model and its graft.

    Args:
        plain: The config without the graft.
        grafted: The config with the graft.
        shape: Height and width of the image; None: the default of
            :func:`~..common.image_shape`.
        repeats: Timed forward passes, after one for warm-up.
        memory: Whether to measure peak memory, each model in its own process.

    Raises:
        RuntimeError: A model does not build or run.
        ValueError: ``shape`` is None and the segmentor has no crop size.
    """
    configs = dict(zip(BOTH, (plain, grafted)))
    models = {name: build_model(cfg) for name, cfg in configs.items()}
    shape = image_shape(unwrapped(models['plain']), plain, shape)
    counts = {name: complexity(model, shape) for name, model in models.items()}
    seconds, timed = _times(
        {name: unwrapped(model) for name, model in models.items()}, shape,
        repeats)
    del models
    peaks = {}
    if memory:
        case = GraftCase(
            name='graft',
            shape=shape,
            heads=timed != NECK_ONLY,
            contents={name: _content(cfg) for name, cfg in configs.items()})
        peaks = {name: peak_in_fresh_process(case, name, 'forward')
                 for name in BOTH}
    return Costs(shape, counts, seconds, peaks, timed)


# ---------------------------------------------------------------------- time

WHOLE = 'backbone, neck and heads with random weights, without losses'
NECK_ONLY = 'backbone and neck; the heads do not run without annotations'


def _forward(model: nn.Module, images: Tensor, heads: bool) -> object:
    if heads:
        return model(images, data_samples(images), mode='tensor')
    return model.extract_feat(images)


@torch.no_grad()
def _times(models: dict[str, nn.Module], shape: tuple[int, int],
           repeats: int) -> tuple[dict[str, dict[str, float]], str]:
    """Time both models in turn; return median seconds by model and part."""
    clocks = {name: _PartClock(model) for name, model in models.items()}
    images = {name: make_images(model, shape) for name, model in models.items()}
    heads = True
    try:
        _forward(models['plain'], images['plain'], heads)
    except Exception:  # third-party code may raise anything
        heads = False
    found = {name: defaultdict(list) for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            try:
                parts = clocks[name].measure(
                    lambda model=model, name=name: _forward(
                        model, images[name], heads))
            except Exception as error:
                raise RuntimeError(f'the {name} model does not run at '
                                   f'{shape[0]}x{shape[1]}: '
                                   f'{describe(error)}') from error
            for part, seconds in parts.items() if repeat else ():
                found[name][part].append(seconds)
    medians = {
        name: {part: median_and_spread(seconds)['median']
               for part, seconds in parts.items()}
        for name, parts in found.items()
    }
    return medians, WHOLE if heads else NECK_ONLY


def make_images(model: nn.Module, shape: tuple[int, int]) -> Tensor:
    """Return one random image (1, C, H, W) with the model's number of channels."""
    return torch.rand(1, image_channels(model), *shape)


class _PartClock:
    """Measure the seconds of the parts of a model, without nested parts."""

    def __init__(self, model: nn.Module) -> None:
        model.eval()
        self._stack: list[str] = []
        self._found: dict[str, float] = {}
        self._last = 0.
        for module, label in model_labels(model).items():
            module.forward = self._timed(module.forward, label.part)

    def measure(self, run: Callable[[], object]) -> dict[str, float]:
        """Call ``run`` and return the seconds of each part and of the whole."""
        self._found = {}
        started = self._last = time.perf_counter()
        run()
        return {**self._found, TOTAL: time.perf_counter() - started}

    def _timed(self, forward, part: str):

        def timed(*args, **kwargs):
            self._add_elapsed()
            self._stack.append(part)
            try:
                return forward(*args, **kwargs)
            finally:
                self._add_elapsed()
                self._stack.pop()

        return timed

    def _add_elapsed(self) -> None:
        """Add the time since the last call to the innermost running part."""
        now = time.perf_counter()
        if self._stack:
            part = self._stack[-1]
            self._found[part] = self._found.get(part, 0.) + now - self._last
        self._last = now


# -------------------------------------------------------------------- memory


def _content(cfg: Config) -> dict:
    """Return the settings that a new process needs to build the model."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    return dict(
        model=copy.deepcopy(cfg.to_dict()['model']),
        default_scope=cfg.default_scope,
        imports=[imports] if isinstance(imports, str) else list(imports))


@dataclass(frozen=True)
class GraftCase(Case):
    """A forward pass of either model."""

    shape: tuple[int, int] = (1, 1)
    heads: bool = True
    contents: dict[str, dict] = field(default_factory=dict)

    def candidates(self) -> tuple[str, ...]:
        """Return the names of both models."""
        return BOTH

    def prepare(self, candidate: str) -> Any:
        """Return the model and an image."""
        content = self.contents[candidate]
        import_modules_from_strings(content['imports'],
                                    allow_failed_imports=True)
        cfg = Config(dict(model=ConfigDict(content['model']),
                          default_scope=content['default_scope']))
        model = unwrapped(build_model(cfg))
        model.eval()
        return model, make_images(model, self.shape)

    def leaves(self, state: Any) -> list[Tensor]:
        """Return no tensors: nothing is trained."""
        return []

    def run(self, candidate: str, state: Any) -> Any:
        """Run a forward pass."""
        return _forward(*state, self.heads)
