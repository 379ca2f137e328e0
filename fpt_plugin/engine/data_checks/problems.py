"""The result of a check of data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A fault of the data or of their config.

    Attributes:
        where: The config key that leads to it.
        text: Description and solution.
        fatal: Whether a run would fail or learn wrong labels; other problems
            give a warning.
    """

    where: str
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return f'{self.where}: {self.text}'
