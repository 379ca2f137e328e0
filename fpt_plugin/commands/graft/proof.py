"""Prove a graft: run both models on the same input with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from rich.table import Table
from torch import Tensor, nn

from ...io.checkpoints import some
from ...openmmlab.models import (
    build_model,
    data_samples,
    describe,
    image_channels,
)
from ..common import Loaded, load_weights
from .sites import Site, Unbuildable, build_part
from .weights import calibrate, nudge, randomise, share_weights

# Height and width, tried in turn until the plain model runs to its end.
SIZES = ((96, 128), (256, 256), (512, 512))
PREDICTIONS = 'predictions'

# mmcv's message for an operator that is missing, whatever the image size.
_MISSING_OPERATOR = 'implementation for device'


@dataclass(frozen=True)
class Comparison:
    """Comparison of one output of both models.

    Attributes:
        what: The part of the model that returned it.
        tensors: Number of tensors in it.
        equal: Whether all values are equal; NaNs must be in the same places.
        difference: The largest absolute difference; infinite where shapes or
            types differ.
        informative: Whether equality means something: there are finite numbers
            in it that are not all the same.
    """

    what: str
    tensors: int
    equal: bool
    difference: float
    informative: bool


@dataclass(frozen=True)
class Proof:
    """Result of the comparison of a plain model with its graft.

    Attributes:
        shape: Height and width of the images.
        comparisons: The comparisons, one per output.
        notes: Outputs that could not be compared, and why.
        effective: Whether outputs of heads change when the graft's weights
            change; None if no head ran.
    """

    shape: tuple[int, int]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    effective: bool | None = None

    @property
    def identical(self) -> bool:
        """Whether all outputs are equal and the necks' maps are not constant."""
        necks = [c for c in self.comparisons if c.what.endswith('neck')]
        return bool(necks) and all(c.informative for c in necks) and all(
            c.equal for c in self.comparisons)

    @property
    def heads_compared(self) -> bool:
        """Whether informative outputs of other parts than the neck were compared."""
        return any(c.informative and not c.what.endswith('neck')
                   for c in self.comparisons)

    def table(self) -> Table:
        """Return a table with a row for each comparison."""
        height, width = self.shape
        table = Table(
            title=f'plain and grafted model at step 0, {height}x{width}',
            caption='\n'.join(self.notes) or None,
            caption_justify='left')
        for name in ('output of', 'tensors', 'identical'):
            table.add_column(name, no_wrap=True)
        for c in self.comparisons:
            verdict = 'yes' if c.equal else f'NO, by up to {c.difference:.3g}'
            if c.equal and not c.informative:
                verdict = 'yes, but all values are the same constant'
            table.add_row(c.what, str(c.tensors), verdict)
        return table


def prove(plain: Config,
          grafted: Config,
          state_dict: Mapping[str, Tensor] | None = None,
          source: str = 'the checkpoint',
          sizes: Sequence[tuple[int, int]] = SIZES) -> Proof:
    """Build both models, give them the same weights and compare their outputs.

    Args:
        plain: The config without the graft.
        grafted: The config with the graft.
        state_dict: Weights of the plain model; None: random ones.
        source: Name of the weights for messages.
        sizes: Heights and widths of images to try.

    Raises:
        ValueError: The weights are of another model, or do not all load into
            the graft.
        RuntimeError: The graft does not build or run, although the plain model
            does; :class:`~.sites.Unbuildable` if the plain model does not.
    """
    return compare(*build_pair(plain, grafted), state_dict, source, sizes)


def build_pair(plain: Config, grafted: Config) -> tuple[nn.Module, nn.Module]:
    """Build the models of both configs.

    Raises:
        RuntimeError: As in :func:`prove`.
    """
    try:
        before = build_model(plain)
    except Exception as error:  # third-party code may raise anything
        raise Unbuildable('the plain model does not build: '
                          f'{describe(error)}') from error
    try:
        return before, build_model(grafted)
    except Exception as error:
        raise RuntimeError('the grafted model does not build: '
                           f'{describe(error)}') from error


class Parts(nn.Module):
    """Backbone and neck of a site, for models whose heads do not build.

    Raises:
        Unbuildable: Backbone or neck do not build either.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        try:
            self.backbone = build_part(site, 'backbone')
            self.neck = build_part(site, 'neck') if site.has_neck else None
        except Exception as error:  # third-party code may raise anything
            raise Unbuildable(describe(error)) from error

    def extract_feat(self, images: Tensor) -> object:
        """Return the maps for the heads."""
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def forward(self, *args, **kwargs) -> None:
        """Raise an error, because there are no heads."""
        raise NotImplementedError('the heads do not build')


def compare(before: nn.Module,
            after: nn.Module,
            state_dict: Mapping[str, Tensor] | None = None,
            source: str = 'the checkpoint',
            sizes: Sequence[tuple[int, int]] = SIZES) -> Proof:
    """Compare two models as :func:`prove` does; their weights are overwritten."""
    notes = []
    if state_dict is not None:
        loaded = load_weights(before, state_dict, source, other_classes=True)
        notes += notes_of(loaded, source)
    else:
        randomise(before)
    for model in (before, after):
        model.eval()
    detectors = dict(_detectors(before))
    if not detectors:
        raise Unbuildable('the plain model has no part with a backbone: '
                          f'{type(before).__name__}')
    if state_dict is None:
        for detector in detectors.values():
            calibrate(before, detector, _images(detector, sizes[0], batch=2))
    share_weights(before, after)
    twins = dict(_detectors(after))
    comparisons, shape = [], sizes[0]
    runs = {}
    for name, detector in detectors.items():
        prefix = f'{name}.' if name else ''
        shape, outputs, errors = _first_complete_run(detector, sizes)
        images = _images(detector, shape)
        new, failures = _outputs(twins[name], images)
        if failures and (not errors or 'neck' not in new):
            raise RuntimeError('the grafted model fails where the plain one '
                               f'runs: {failures[0]}')
        notes += [f'not compared: {prefix}{error}' for error in errors]
        comparisons += _compare(outputs, new, prefix)
        runs[name] = (images, new)
    return Proof(shape, tuple(comparisons), tuple(dict.fromkeys(notes)),
                 _is_effective(after, twins, runs))


def notes_of(loaded: Loaded, source: str) -> list[str]:
    """Describe the parts of a checkpoint that were not loaded."""
    notes = []
    if loaded.ignored:
        notes.append(f'{len(loaded.ignored)} keys of {source} are not in the '
                     f'model: {some(loaded.ignored, 3)}')
    if loaded.reshaped:
        notes.append(f'{source} has other classes or other heads; all other '
                     f'weights are loaded: {loaded.reshaped}')
    return notes


def _is_effective(after: nn.Module, twins: Mapping[str, nn.Module],
                  runs: Mapping[str, tuple[Tensor, dict]]) -> bool | None:
    """Return whether outputs of heads change when the graft's weights change.

    They do not if no head reads the transformed maps.
    """
    nudge(after)
    changes = []
    for name, (images, old) in runs.items():
        new, failures = _outputs(twins[name], images)
        heads = [c for c in _compare(old, new, '') if c.what != 'neck']
        if not failures and heads:
            changes.append(any(not c.equal for c in heads))
    return any(changes) if changes else None


def _detectors(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(getattr(module, 'backbone', None), nn.Module) \
                and hasattr(module, 'extract_feat'):
            yield name, module


def _images(detector: nn.Module, shape: tuple[int, int], batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, image_channels(detector), *shape,
                       generator=generator)


def _first_complete_run(
    detector: nn.Module, sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], dict[str, list], list[str]]:
    """Run a plain model at each size until all of it runs, or at least its neck.

    Returns:
        The size, the outputs by part, and the errors.
    """
    best = None
    own = getattr(getattr(detector, 'data_preprocessor', None), 'size', None)
    if isinstance(own, (list, tuple)) and len(own) == 2:
        sizes = (*sizes, tuple(own))  # some backbones take only this size
    for shape in sizes:
        outputs, errors = _outputs(detector, _images(detector, shape))
        if 'neck' in outputs and (best is None or not errors):
            best = (shape, outputs, errors)
        if not errors or any(_MISSING_OPERATOR in error for error in errors):
            break
    if best is None:
        raise Unbuildable(f'the plain model does not run: {errors[0]}')
    return best


@torch.no_grad()
def _outputs(detector: nn.Module,
             images: Tensor) -> tuple[dict[str, list], list[str]]:
    """Run a detector; return the outputs by part, and the errors.

    The outputs of heads are recorded too, because predictions may be empty.
    """
    found: dict[str, list] = {}
    errors = []
    with _Recording(detector, found):
        for mode in ('predict', 'tensor'):
            found.clear()
            torch.manual_seed(0)
            samples = data_samples(images)
            try:
                found[PREDICTIONS] = [detector(images, samples, mode=mode)]
                break
            except Exception as error:  # third-party code may raise anything
                errors.append(f'{mode}: {describe(error)}')
        else:
            if 'neck' not in found:
                try:
                    found['neck'] = [detector.extract_feat(images)]
                except Exception as error:
                    errors.append(describe(error))
    if PREDICTIONS in found:
        errors.clear()
        found[PREDICTIONS] = found.pop(PREDICTIONS)  # shown last
    return found, errors


class _Recording:
    """Record the outputs of a detector's parts while it runs.

    ``forward`` is wrapped, because detectors also call it directly for heads,
    and hooks would miss that.
    """

    def __init__(self, detector: nn.Module, found: dict[str, list]) -> None:
        self.found = found
        neck = getattr(detector, 'neck', None)
        parts = {'neck': neck if neck is not None else detector.backbone}
        for name, child in detector.named_children():
            if name in ('backbone', 'neck', 'data_preprocessor'):
                continue
            parts[name] = child
            for inner, head in child.named_children():
                if name == 'roi_head' or isinstance(child, nn.ModuleList):
                    parts[f'{name}.{inner}'] = head
        self.parts = {name: part for name, part in parts.items()
                      if not isinstance(part, (nn.ModuleList, nn.ModuleDict))}

    def __enter__(self) -> None:
        # A part may have several names, and an instance its own forward.
        self.forwards = [(part, vars(part).get('forward'))
                         for part in dict.fromkeys(self.parts.values())]
        for name, part in self.parts.items():
            part.forward = self._recorded(name, part.forward)

    def __exit__(self, *exception) -> None:
        for part, forward in self.forwards:
            del part.forward  # the forward of the class is used again
            if forward is not None:
                part.forward = forward

    def _recorded(self, name: str, forward):

        def recorded(*args, **kwargs):
            out = forward(*args, **kwargs)
            self.found.setdefault(name, []).append(_copied(out))
            return out

        return recorded


def _copied(out: object) -> list:
    """Copy the leaves of an output: later modules may change a map in place."""
    return [x.clone() if isinstance(x, Tensor) else x for x in _leaves(out)]


def _leaves(x: object) -> Iterator[object]:
    """Yield the tensors and plain values in a nested output."""
    if isinstance(x, Tensor) or x is None:
        yield x
    elif isinstance(x, np.ndarray):
        yield torch.from_numpy(x)
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from _leaves(value)
    elif isinstance(x, BaseDataElement):
        for _, value in sorted(x.items()):
            yield from _leaves(value)
    elif isinstance(x, (list, tuple)):
        for value in x:
            yield from _leaves(value)
    elif isinstance(getattr(x, 'tensor', None), Tensor):  # mmdet's boxes
        yield x.tensor
    elif isinstance(x, (bool, int, float, str, bytes)):
        yield x


def _compare(before: dict[str, list], after: dict[str, list],
             prefix: str) -> list[Comparison]:
    comparisons = []
    for what, old in before.items():
        a, b = (list(_leaves(x)) for x in (old, after.get(what)))
        tensors = [x for x in a if isinstance(x, Tensor)]
        differences = [_difference(x, y) for x, y in zip(a, b)]
        if len(a) != len(b):
            differences.append(float('inf'))
        comparisons.append(
            Comparison(
                prefix + what,
                tensors=len(tensors),
                equal=not any(differences),
                difference=max(differences, default=0.),
                informative=any(map(_is_informative, tensors))))
    return comparisons


def _difference(a: object, b: object) -> float:
    """Return the largest absolute difference; NaNs in the same places are equal."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0. if type(a) is type(b) and a == b else float('inf')
    if a.shape != b.shape or a.dtype != b.dtype:
        return float('inf')
    if torch.equal(a, b):
        return 0.
    if not a.is_floating_point():
        return float('inf')
    differs = (a != b) & ~(a.isnan() & b.isnan())
    if not differs.any():
        return 0.
    gap = (a[differs].double() - b[differs].double()).abs().max().item()
    return gap if gap > 0 else float('inf')  # NaN on one side only


def _is_informative(x: Tensor) -> bool:
    if not x.is_floating_point():
        return x.numel() > 1 and bool((x != x.flatten()[0]).any())
    finite = x[x.isfinite()]
    return finite.numel() > 1 and bool((finite != finite[0]).any())
