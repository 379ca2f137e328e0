"""The forward passes of a model that are counted, and what comes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .counting import Meter
from .report import Part


class Label(NamedTuple):
    """What a module is counted for."""

    part: str
    branch: str | None = None
    level: int | None = None


OTHER = Label('other')

Labeller = Callable[[nn.Module], 'dict[nn.Module, Label]']
Runner = Callable[[nn.Module, 'Callable[[tuple[int, ...]], Tensor]'],
                  'list[str]']

# Modes of a pass, the one that is wished for first. Some norms refuse a single
# pixel in training, some models train with annotations alone: what they save
# otherwise is all but the same.
TRAINING = ('training mode', 'training mode but for the batch norms',
            'evaluation mode')
TESTING = ('evaluation mode', )
_REFUSED_BY_NORM = 'more than 1 value per channel'


@dataclass
class _Pass:
    """A forward pass of a copy of the model, and what was counted in it."""

    twin: nn.Module
    meter: Meter
    device: str
    mode: str
    errors: list[str]

    def ran(self, label: Label) -> bool:
        """Whether all that has the label ran to its end."""
        return label in self.meter.entered and label not in self.meter.failed


class Measurement:
    """Counts one pass in evaluation mode, and one that autograd records.

    Args:
        model: Left as it is: copies run.
        labels: The labels of the modules of a copy, outer modules first.
        run: Runs a copy on the tensors that the given function makes of
            shapes; returns what failed, one line each.

    Attributes:
        counted: The pass whose multiply-adds count.
        saved: The pass whose saved tensors count.
        notes: What they are that a reader would not expect.
    """

    def __init__(self, model: nn.Module, labels: Labeller, run: Runner) -> None:
        self.model, self.labels, self.run = model, labels, run
        self.notes: list[str] = []
        self.counted = self._first_whole('MACs', TESTING, saving=False)
        self.saved = self._first_whole(
            'saved for backward', TRAINING, saving=True)

    def _first_whole(self, what: str, modes: tuple[str, ...],
                     saving: bool) -> _Pass:
        """The first pass without an error, else the one that came farthest.

        Without data first, then with. Where it is not the pass that was wished
        for, a note says why.
        """
        passes: list[_Pass] = []
        for device in ('meta', 'cpu'):
            for mode in modes:
                errors = passes[-1].errors if passes else ['not yet run']
                if errors and (mode != TRAINING[1]
                               or _REFUSED_BY_NORM in ' '.join(errors)):
                    passes.append(self._pass(device, mode, saving))
        best = min(
            passes,
            key=lambda p: (len(p.errors), -sum(map(p.ran, p.meter.entered))))
        errors = {(p.device, p.mode): p.errors for p in passes}
        if best.device == 'cpu':
            self.notes.append(f'{what}: with data, because of '
                              f'{errors["meta", modes[0]][0]}')
        if best.mode != modes[0]:
            self.notes.append(f'{what}: in {best.mode}, because of '
                              f'{errors[best.device, modes[0]][0]}')
        return best

    def _pass(self, device: str, mode: str, saving: bool) -> _Pass:
        twin = _copy(self.model, device)
        # Not by its result: some train() of the libraries return None.
        twin.train(mode in TRAINING[:2])
        if mode == TRAINING[1]:
            for module in twin.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        meter = Meter(twin, self.labels(twin), OTHER)

        def make(shape: tuple[int, ...]) -> Tensor:
            if device == 'meta':
                return torch.empty(shape, device=device)
            return torch.rand(shape)

        counter = meter.saving() if saving else meter.counting()
        with torch.set_grad_enabled(saving), counter:
            errors = list(dict.fromkeys(self.run(twin, make)))
        return _Pass(twin, meter, device, mode, errors)

    def parts(self, key: Callable[[Label], Label]) -> dict[Label, Part]:
        """The numbers of the labels that have a key in common, by the key.

        Keys that have nothing to count are left out.
        """
        owners = self._owners(self.model)
        groups: dict[Label, list[Label]] = {}
        for label in (*dict.fromkeys(self.labels(self.model).values()), OTHER):
            groups.setdefault(key(label), []).append(label)
        parts = {}
        for group, members in groups.items():
            mine = [p for p, label in owners.items() if label in members]
            part = Part(
                group.branch or group.part,
                parameters=sum(p.numel() for p in mine),
                trainable=sum(p.numel() for p in mine if p.requires_grad),
                macs=self._macs(members, bool(mine)),
                saved_bytes=self._saved_bytes(members),
                level=group.level)
            if part.parameters or part.macs or part.saved_bytes:
                parts[group] = part
        return parts

    def _owners(self, model: nn.Module) -> dict[nn.Parameter, Label]:
        """The innermost label of each parameter."""
        owners = dict.fromkeys(model.parameters(), OTHER)
        for module, label in self.labels(model).items():
            owners.update(dict.fromkeys(module.parameters(), label))
        return owners

    def _macs(self, members: list[Label], has_parameters: bool) -> int | None:
        meter = self.counted.meter
        if any(label in meter.failed for label in members):
            return None
        # Modules may be used without being called, as embeddings are, and
        # what is called in training alone costs nothing in testing.
        if has_parameters and not any(
                label in meter.entered or label in self._used(self.counted)
                or self._trains_alone(label) for label in members):
            return None
        return sum(meter.macs[label] for label in members)

    def _used(self, of: _Pass) -> set[Label]:
        return {
            label for parameter, label in self._owners(of.twin).items()
            if of.meter.used(parameter)
        }

    def _trains_alone(self, label: Label) -> bool:
        """Whether a part does nothing in testing, and something in training."""
        return (not self.counted.errors and self.saved.mode in TRAINING[:2]
                and label not in self.counted.meter.entered
                and label not in self._used(self.counted)
                and self.saved.ran(label))

    def _saved_bytes(self, members: list[Label]) -> int | None:
        meter = self.saved.meter
        if any(label in meter.failed for label in members) or (
                self.saved.errors and meter.entered.isdisjoint(members)):
            return None
        return sum(meter.saved[label] for label in members)

    def training_only(self, parts: dict[Label, Part]) -> list[str]:
        """The parts that do nothing in testing."""
        return [label.part for label in parts if self._trains_alone(label)]

    def missing(self, parts: dict[Label, Part]) -> list[str]:
        """What the numbers of the parts lack, and why."""
        lines = []
        for label, part in parts.items():
            reasons = []
            for what, number, of in (
                ('MACs', part.macs, self.counted),
                ('saved for backward', part.saved_bytes, self.saved)):
                if number is None:
                    raised = [error for failed, error in of.meter.failed.items()
                              if failed.part == label.part]
                    why = raised or of.errors or ['its forward was not called']
                    reasons.append(f'{what} ({why[0]})')
            if reasons:
                lines.append(f'{label.part}: {", ".join(reasons)}')
        lost = {label.part for label, part in parts.items()
                if part.macs is None}
        lines += [f'{name}: no operator used its parameters'
                  for name in self._unused(lost)]
        return lines + sorted(self.counted.meter.uncounted)

    def _unused(self, lost: set[str]) -> list[str]:
        """The outermost modules that did nothing, in parts that are counted."""
        twins = dict(self.saved.twin.named_modules())
        owners = self._owners(self.counted.twin)
        found: list[str] = []
        for name, module in self.counted.twin.named_modules():
            parameters = list(module.parameters())
            if not parameters or name.startswith(
                    tuple(f'{outer}.' for outer in found)):
                continue
            label = owners[parameters[0]]
            # Autograd records the indices of an embedding, not its weights.
            if self._trains_alone(label) and all(
                    isinstance(m, nn.Embedding) for m in module.modules()
                    if m._parameters):
                continue
            if not any(map(self.counted.meter.used, parameters)) \
                    and label.part not in lost \
                    and not any(map(self.saved.meter.used,
                                    twins[name].parameters())):
                found.append(name)
        return found


def _copy(model: nn.Module, device: str) -> nn.Module:
    """A copy; on the meta device without a copy of the data."""
    memo = {}
    if device == 'meta':
        for p in model.parameters():
            memo[id(p)] = nn.Parameter(
                torch.empty_like(p, device=device),
                requires_grad=p.requires_grad)
        for b in model.buffers():
            memo[id(b)] = torch.empty_like(b, device=device)
    return copy.deepcopy(model, memo)
