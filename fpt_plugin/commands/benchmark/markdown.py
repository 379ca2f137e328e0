"""Cells and rows of the benchmark's Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'


def table_head(left: Sequence[str], right: Sequence[str],
               last: Sequence[str] = ()) -> list[str]:
    """Names of columns and, under them, their alignment."""
    return [row([*left, *right, *last]),
            row(['---'] * len(left) + ['---:'] * len(right) +
                ['---'] * len(last))]


def ratio(number: float | None, base: float | None) -> str:
    """``' (1.23x)'`` of a number and a baseline's; empty where one lacks."""
    return f' ({number / base:.2f}x)' if number and base else ''


def milliseconds(found: dict, base: dict, kind: str) -> str:
    """Median of a pass and its ratio to the baseline's; empty if not timed."""
    if kind not in found:
        return ''
    seconds = found[kind]['median']
    return f'{1e3 * seconds:.4g} ms' + ratio(
        seconds, base.get(kind, {}).get('median'))
