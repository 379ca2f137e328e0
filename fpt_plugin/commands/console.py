"""Print tables and lines of commands."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console


def wide_console(width: int = 120) -> Console:
    """Return a console for tables; where there is no terminal, set its width."""
    console = Console()
    if not console.is_terminal:
        console.width = width
    return console


def print_lines(lines: Iterable[str], console: Console | None = None) -> None:
    """Print lines as they are: no markup, no colours, no wrapping."""
    console = console or Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
