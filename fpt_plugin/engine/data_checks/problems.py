"""What a check of data found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A fault of the data, or of what a config says of them.

    Attributes:
        where: The key of the config that leads to it.
        text: What is wrong, and what cures it.
        fatal: Whether a run would fail or learn something else than it is told;
            others are warned about.
    """

    where: str
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return f'{self.where}: {self.text}'
