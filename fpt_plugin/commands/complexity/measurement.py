"""Count forward passes of a model, and sum the counts by part."""

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
    """The part, branch and level to which a module's work counts."""

    part: str
    branch: str | None = None
    level: int | None = None


OTHER = Label('other')

Labeller = Callable[[nn.Module], 'dict[nn.Module, Label]']
Runner = Callable[[nn.Module, 'Callable[[tuple[int, ...]], Tensor]'],
                  'list[str]']

# Modes of a pass, in order of preference. Some norms refuse a single pixel in
# training, and some models need annotations to train; the other modes save
# almost the same tensors.
TRAINING = ('training mode', 'training mode except for batch norms',
            'evaluation mode')
TESTING = ('evaluation mode', )
_REFUSED_BY_NORM = 'more than 1 value per channel'


@dataclass
class _Pass:
    """A forward pass of a copy of the model, with its counts."""

    twin: nn.Module
    meter: Meter
    device: str
    mode: str
    errors: list[str]

    def ran(self, label: Label) -> bool:
        """Return whether the label's modules ran without an error."""
        return label in self.meter.entered and label not in self.meter.failed


class Measurement:
    """Count one pass in evaluation mode, and one that autograd records.

    Args:
        model: The model; only copies of it run.
        labels: Returns the labels of a copy's modules, outer modules first.
        run: Runs a copy; takes the copy and a function that makes a tensor of a
            shape. Returns one line for each error.

    Attributes:
        counted: The pass in which multiply-adds are counted.
        saved: The pass in which saved tensors are counted.
        notes: Deviations of these passes from the preferred ones.
    """

    def __init__(self, model: nn.Module, labels: Labeller, run: Runner) -> None:
        self.model, self.labels, self.run = model, labels, run
        self.notes: list[str] = []
        self.counted = self._first_complete('MACs', TESTING, saving=False)
        self.saved = self._first_complete(
            'saved for backward', TRAINING, saving=True)

    def _first_complete(self, quantity: str, modes: tuple[str, ...],
                        saving: bool) -> _Pass:
        """Return the first pass without an error, else the most complete one.

        Passes on the meta device come before passes with data. A note gives the
        reason if it is not the preferred pass.
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
            self.notes.append(f'{quantity}: with data, because of '
                              f'{errors["meta", modes[0]][0]}')
        if best.mode != modes[0]:
            self.notes.append(f'{quantity}: in {best.mode}, because of '
                              f'{errors[best.device, modes[0]][0]}')
        return best

    def _pass(self, device: str, mode: str, saving: bool) -> _Pass:
        twin = _copy(self.model, device)
        # Do not use the result: train() of some library models returns None.
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
        """Sum the counts of the labels that have the same key.

        Keys without any count are left out.
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
        """Return the innermost label of each parameter."""
        owners = dict.fromkeys(model.parameters(), OTHER)
        for module, label in self.labels(model).items():
            owners.update(dict.fromkeys(module.parameters(), label))
        return owners

    def _macs(self, members: list[Label], has_parameters: bool) -> int | None:
        meter = self.counted.meter
        if any(label in meter.failed for label in members):
            return None
        # A module may be used without a call of its forward, such as an
        # embedding. A module that runs only in training costs nothing in testing.
        if has_parameters and not any(
                label in meter.entered or label in self._used(self.counted)
                or self._only_trains(label) for label in members):
            return None
        return sum(meter.macs[label] for label in members)

    def _used(self, of: _Pass) -> set[Label]:
        return {
            label for parameter, label in self._owners(of.twin).items()
            if of.meter.used(parameter)
        }

    def _only_trains(self, label: Label) -> bool:
        """Return whether a part runs in training but not in testing."""
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
        """Return the parts that run only in training."""
        return [label.part for label in parts if self._only_trains(label)]

    def missing(self, parts: dict[Label, Part]) -> list[str]:
        """Return the counts that are missing, with the reasons."""
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
        """Return the outermost unused modules in parts that are counted."""
        twins = dict(self.saved.twin.named_modules())
        owners = self._owners(self.counted.twin)
        found: list[str] = []
        for name, module in self.counted.twin.named_modules():
            parameters = list(module.parameters())
            if not parameters or name.startswith(
                    tuple(f'{outer}.' for outer in found)):
                continue
            label = owners[parameters[0]]
            # Autograd saves the indices of an embedding, not its weights.
            if self._only_trains(label) and all(
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
    """Copy a model to a device; on the meta device without its data."""
    memo = {}
    if device == 'meta':
        for p in model.parameters():
            memo[id(p)] = nn.Parameter(
                torch.empty_like(p, device=device),
                requires_grad=p.requires_grad)
        for b in model.buffers():
            memo[id(b)] = torch.empty_like(b, device=device)
    return copy.deepcopy(model, memo)
