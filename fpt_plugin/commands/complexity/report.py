"""Cost of a model, part by part, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

CONVENTION = (
    'MACs: multiply-adds of matrix products, convolutions and attention in one '
    'forward pass; norms, activations, softmax, pooling and interpolation are '
    'not counted. Saved: what autograd keeps for the backward pass in float32 '
    'training, without parameters.')


@dataclass(frozen=True)
class Part:
    """Cost of a part of a model.

    Attributes:
        name: ``backbone``, ``pyramid``, ``fpt``, or the name of a head. In
            :attr:`Complexity.branches` a branch of FPT.
        parameters: Number of parameters.
        trainable: Number of parameters that require gradients.
        macs: Multiply-adds; None if they could not be counted.
        saved_bytes: Saved for backward; None if it could not be counted.
        level: Level of a branch, 0 is the finest; None: all levels.
    """

    name: str
    parameters: int
    trainable: int
    macs: int | None
    saved_bytes: int | None
    level: int | None = None


@dataclass(frozen=True)
class Complexity:
    """Cost of a model at one input size.

    Attributes:
        model: Name of the model's class.
        inputs: Input shapes: of the images (B, C, H, W), or of a neck's maps.
        parts: The parts; their sum is :attr:`total`.
        branches: FPT's branches, one for each branch and level; their sum is the
            part ``fpt``.
        notes: Conditions of the counts.
        not_counted: Parts, modules and operations that are missing.
    """

    model: str
    inputs: tuple[tuple[int, ...], ...]
    parts: tuple[Part, ...]
    branches: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    not_counted: tuple[str, ...] = ()

    @property
    def total(self) -> Part:
        """Sum of all counts that are known."""
        return total_of('total', self.parts)

    @property
    def complete(self) -> bool:
        """Whether the multiply-adds of the total are complete."""
        unknown = [p for p in self.parts if None in (p.macs, p.saved_bytes)]
        return all(p.macs is not None for p in self.parts) and len(
            self.not_counted) == len(unknown)

    def part(self, name: str) -> Part:
        """Return a part by its name.

        Raises:
            KeyError: The model has no such part.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(f'name must be one of {[p.name for p in self.parts]}, '
                       f'got {name!r}')

    def by_branch(self) -> tuple[Part, ...]:
        """Sum FPT's branches over all levels."""
        return tuple(
            total_of(name, levels) for name, levels in self._grouped().items())

    def to_dict(self) -> dict:
        """Convert to plain numbers, lists and strings, for JSON."""
        return dict(
            convention=CONVENTION,
            **asdict(self),
            total=asdict(self.total),
            complete=self.complete)

    def table(self, per_level: bool = False) -> Table:
        """Format a table of the parts, with the notes below.

        Args:
            per_level: Show each level of FPT's branches.
        """
        shapes = ', '.join('x'.join(map(str, shape)) for shape in self.inputs)
        caption = [CONVENTION, *self.notes]
        caption += [f'not counted: {what}' for what in self.not_counted]
        table = Table(
            title=f'{self.model} on {shapes}',
            caption='\n'.join(caption),
            caption_justify='left')
        table.add_column('part', no_wrap=True)
        for name in ('parameters', 'trainable', 'GMACs', 'saved (MiB)'):
            table.add_column(name, justify='right', no_wrap=True)
        for name, part in self._rows(per_level):
            table.add_row(name, f'{part.parameters:,}', f'{part.trainable:,}',
                          _scaled(part.macs, 1e9),
                          _scaled(part.saved_bytes, 2**20))
        table.add_section()
        total = self.total
        # Mark an incomplete sum as a lower bound.
        bounds = [
            '' if complete else '>= ' for complete in (
                self.complete,
                all(p.saved_bytes is not None for p in self.parts))
        ]
        table.add_row('total', f'{total.parameters:,}', f'{total.trainable:,}',
                      bounds[0] + _scaled(total.macs, 1e9),
                      bounds[1] + _scaled(total.saved_bytes, 2**20))
        return table

    def _rows(self, per_level: bool) -> Iterator[tuple[str, Part]]:
        for part in self.parts:
            yield part.name, part
            if part.name != 'fpt':
                continue
            for name, levels in self._grouped().items():
                yield f'  {name}', total_of(name, levels)
                for branch in levels if per_level else ():
                    if branch.level is not None:
                        yield f'    level {branch.level}', branch

    def _grouped(self) -> dict[str, list[Part]]:
        grouped: dict[str, list[Part]] = {}
        for branch in self.branches:
            grouped.setdefault(branch.name, []).append(branch)
        return grouped


def total_of(name: str, parts: Sequence[Part]) -> Part:
    """Sum the known counts of parts under a name."""

    def known(numbers: list[int | None]) -> int | None:
        found = [n for n in numbers if n is not None]
        return sum(found) if found or not numbers else None

    return Part(
        name,
        parameters=sum(p.parameters for p in parts),
        trainable=sum(p.trainable for p in parts),
        macs=known([p.macs for p in parts]),
        saved_bytes=known([p.saved_bytes for p in parts]))


def _scaled(number: int | None, unit: float) -> str:
    return 'n/a' if number is None else f'{number / unit:,.2f}'
