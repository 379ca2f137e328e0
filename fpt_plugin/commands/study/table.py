"""Table and plot of the finished rows of a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from ...io.files import replacing
from .running import Study


@dataclass(frozen=True)
class Row:
    """The finished runs of a row.

    Attributes:
        name: Name of the row.
        runs: Result of each seed.
        baseline: The row it is compared with; None for the study's baseline.
        gains: Difference to the baseline, for each seed that both have.
    """

    name: str
    runs: dict[int, dict]
    baseline: str | None = None
    gains: tuple[float, ...] = ()

    def figures(self, part: str) -> list[float]:
        """Return the metric of each seed on ``'choice'`` or ``'report'``."""
        return [run[part] for run in self.runs.values()]


def read_rows(study: Study, folder: Path) -> list[Row]:
    """Read the finished rows, in the study's order.

    Raises:
        ValueError: A file is not a result of this study.
    """
    runs: dict[str, dict[int, dict]] = {}
    for path in sorted(folder.glob('*.json')):
        result = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(result, dict) or result.get('study') != study.name:
            raise ValueError(f'{path} is not a result of the study {study.name}')
        runs.setdefault(result['row'], {})[result['seed']] = result
    rows = []
    for name in study.rows:
        baseline = study.baseline_of(name)
        base = runs.get(baseline, {})
        found = dict(sorted(runs.get(name, {}).items()))
        gains = tuple(found[seed]['report'] - base[seed]['report']
                      for seed in found if seed in base)
        if found:
            rows.append(Row(name, found, baseline, gains))
    return rows


def interval(differences: Sequence[float]) -> float | None:
    """Return half the 95 % confidence interval of the mean, by Student's t.

    None for fewer than two differences.
    """
    if len(differences) < 2:
        return None
    from scipy.stats import t  # slow to import, and mmdet needs it anyway
    count = len(differences)
    return float(t.ppf(0.975, count - 1)) * stdev(differences) / sqrt(count)


def markdown(study: Study, rows: Sequence[Row]) -> str:
    """Format the table, with a line that explains it."""
    pretrained = any(
        'pretraining' in run for row in rows for run in row.runs.values())
    same = all(row.baseline in (None, study.baseline) for row in rows)
    columns = ['row', 'seeds', 'validation', 'reported',
               f'gain over {study.baseline}' if same else 'gain', 'parameters',
               'CPU s per step']
    if study.shape is not None:
        columns.insert(-1, 'GMACs at {}x{}'.format(*study.shape))
    columns += pretrained * ['pre-training']
    lines = [f'{study.title}', '', f'| {" | ".join(columns)} |',
             '|---' * len(columns) + '|']
    factor = study.factor
    for row in rows:
        reported = [x * factor for x in row.figures('report')]
        gain = '' if not row.gains else f'{mean(row.gains) * factor:+.2f}'
        half = interval(row.gains)
        if half is not None:
            gain += f' ± {half * factor:.2f}'
        if gain and not same:
            gain += f' over {row.baseline}'
        run = next(iter(row.runs.values()))
        seconds = [r['cpu_seconds_per_step'] for r in row.runs.values()
                   if r.get('cpu_seconds_per_step')]
        busy = f'{mean(seconds):.2f}' if seconds else ''
        macs = '' if study.shape is None else f' {_giga(run)} |'
        lines.append(
            f'| {row.name} | {len(row.runs)} | '
            f'{mean(row.figures("choice")) * factor:.2f} | '
            f'{_mean_and_spread(reported)} | {gain} | '
            f'{run["parameters"] / 1e6:.2f} M |{macs} '
            f'{busy} |' + pretrained * f' {_pretraining(row)} |')
    lines += tests_table(study, rows)
    lines += [
        '', 'Reported: mean and standard deviation over the seeds. Gain: mean of '
        'the differences between runs with the same seed, with its 95 % interval. '
        'CPU seconds per step: processor time of a training step, without loading '
        'images.'
    ]
    return '\n'.join(lines)


def tests_table(study: Study, rows: Sequence[Row]) -> list[str]:
    """Format the metrics of all tests of all rows, as the evaluators return them.

    Returns:
        The lines, with an empty one before them; none if no row has more than one
        test.
    """
    if not any(run.get('tests') for row in rows for run in row.runs.values()):
        return []
    found: dict[str, list[dict[str, float]]] = {}  # test to the metrics of each seed
    for row in rows:
        for run in row.runs.values():
            # Older results have only the metric of the study.
            found.setdefault(row.name, []).append(
                run.get('metrics', {study.metric: run['report']}))
            for test, metrics in run.get('tests', {}).items():
                found.setdefault(f'{row.name}, {test}', []).append(metrics)
    every = [metrics for runs in found.values() for metrics in runs]
    names = dict.fromkeys(name for metrics in every for name in metrics)
    lines = ['', f'| metric | {" | ".join(found)} |', '|---' * (1 + len(found)) + '|']
    for name in names:
        task, _, short = name.rpartition('/')
        if task and all(m.get(name) == m.get(short) for m in every):
            continue  # of a single task
        columns = [[run[name] for run in runs if name in run]
                   for runs in found.values()]
        cells = [_mean_and_spread(values, 2 if max(map(abs, values)) >= 1 else 4)
                 if values else '' for values in columns]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return lines


def _giga(run: dict) -> str:
    return f'{run["macs"] / 1e9:.2f}' if 'macs' in run else ''


def _mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the mean and, for several values, the standard deviation."""
    spread = f' ± {stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{mean(values):.{digits}f}{spread}'


def _pretraining(row: Row) -> str:
    """Format the steps and the duration of the pre-training."""
    found = [run['pretraining'] for run in row.runs.values() if 'pretraining' in run]
    if not found:
        return 'none'
    # The clock of a CPU run includes other processes.
    key, unit = ('cpu_seconds', 'CPU minutes') if all(
        'cpu_seconds_per_step' in run for run in row.runs.values()) else (
        'seconds', 'minutes')
    minutes = mean(x[key] for x in found) / 60
    return f'{found[0]["steps"]} steps, {minutes:.1f} {unit}'


def plot(study: Study, rows: Sequence[Row], out: Path) -> None:
    """Plot the metric against multiply-adds, with its range over the seeds."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for row in rows:
        reported = [x * study.factor for x in row.figures('report')]
        macs = next(iter(row.runs.values()))['macs'] / 1e9
        axes.errorbar(
            macs, mean(reported),
            yerr=[[mean(reported) - min(reported)],
                  [max(reported) - mean(reported)]],
            fmt='o', capsize=3, label=row.name,
            color='black' if row.name == study.baseline else None)
        axes.annotate(row.name, (macs, mean(reported)), xytext=(5, 5),
                      textcoords='offset points', fontsize=8)
    axes.set_xlabel('GMACs of the whole model')
    axes.set_ylabel(study.title, fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150, format=out.suffix[1:] or 'png')
