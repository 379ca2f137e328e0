"""Format cells and rows of the benchmark's Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def row(cells: Sequence[str]) -> str:
    """Format one line of a table."""
    return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'


def table_head(left: Sequence[str], right: Sequence[str],
               last: Sequence[str] = ()) -> list[str]:
    """Format the names of the columns, and their alignment."""
    return [row([*left, *right, *last]),
            row(['---'] * len(left) + ['---:'] * len(right) +
                ['---'] * len(last))]


def ratio(number: float | None, base: float | None) -> str:
    """Format a ratio as ``' (1.23x)'``; empty if a number is missing."""
    return f' ({number / base:.2f}x)' if number and base else ''


def milliseconds(found: dict, base: dict, kind: str) -> str:
    """Format a pass's median and its ratio to the baseline; empty if not timed."""
    if kind not in found:
        return ''
    seconds = found[kind]['median']
    return f'{1e3 * seconds:.4g} ms' + ratio(
        seconds, base.get(kind, {}).get('median'))
