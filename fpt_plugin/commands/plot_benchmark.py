"""Plot the benchmark's JSON files for the guide."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..io.files import replacing

ERRORS = (OSError, ValueError)

COLOURS = dict(fpt_plugin='#0b6e8a', reference='#c7c7c7', sdpa='#e0a030')
LABELS = dict(
    fpt_plugin='fpt_plugin',
    reference='plain formula',
    sdpa='one SDPA call for each part')


def parser() -> argparse.ArgumentParser:
    """Build the parser of tools/plot_benchmark.py."""
    parser = argparse.ArgumentParser(
        description='Plot time and memory of forward and backward passes')
    parser.add_argument(
        'results',
        nargs='*',
        default=[
            'benchmarks/attention-cpu-float32.json',
            'benchmarks/local-attention-cpu-float32.json'
        ],
        help='JSON files of tools/benchmark.py')
    parser.add_argument('--out', default='resources/benchmark.png')
    return parser


def _read(path: str) -> dict:
    """Read a result; files of version 0.1.0 have other key names."""
    content = json.loads(Path(path).read_text(encoding='utf-8'))
    if not isinstance(content, dict) or 'records' not in content:
        raise ValueError('results must be JSON files of benchmark attention or '
                         f'local-attention, got {path}')
    content.setdefault('environment', content.get('surroundings'))
    for record in content['records']:
        record.setdefault('candidates', record.get('contestants'))
    return content


def bars(paths: list[str]) -> tuple[list[dict], dict]:
    """Read the cases of some result files, and the environment of the first.

    Raises:
        ValueError: A file has no case with times and memory.
    """
    cases, machine = [], None
    for path in paths:
        content = _read(path)
        machine = machine or content['environment']
        found = [
            record for record in content['records'] if any(
                'both_bytes' in c for c in record['candidates'].values())
        ]
        if not found:
            raise ValueError('results must hold cases with memory, measured '
                             f'without --no-memory, got none in {path}')
        cases += found
    return cases, machine


def draw(paths: list[str], out: str) -> Path:
    """Plot seconds and extra memory, a group of bars for each case.

    Returns:
        The path of the picture.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    cases, machine = bars(paths)
    names = [n for n in COLOURS if any(n in c['candidates'] for c in cases)]
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.2), sharex=True)
    quantities = (
        ('seconds', lambda c: c['both']['median']),
        ('GiB', lambda c: c['both_bytes'] / 2**30),
    )
    for axis, (label, value) in zip(axes, quantities):
        for place, name in enumerate(names):
            shown = [(x, value(case['candidates'][name]))
                     for x, case in enumerate(cases)
                     if 'both' in case['candidates'].get(name, {})]
            axis.bar([x + 0.27 * (place - 1) for x, _ in shown],
                     [y for _, y in shown],
                     width=0.25,
                     color=COLOURS[name],
                     label=LABELS[name])
        for x, case in enumerate(cases):
            for place, name in enumerate(names):
                if 'skipped' in case['candidates'].get(name, {}):
                    axis.text(
                        x + 0.27 * (place - 1), axis.get_ylim()[0], ' not run',
                        rotation=90, ha='center', va='bottom', fontsize=7)
        axis.set_yscale('log')
        axis.set_ylabel(label)
        axis.grid(axis='y', alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_title('Forward and backward pass, time and extra memory '
                      f'({machine["device"]}, {machine["threads"]} threads)',
                      fontsize=10)
    axes[0].legend(frameon=False, fontsize=8, ncols=len(names))
    axes[1].set_xticks(range(len(cases)), [_title(c) for c in cases],
                       fontsize=8)
    figure.tight_layout()
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)
    return Path(out)


def _title(case: dict) -> str:
    if 'window' in case:
        return f'LGT {case["case"]}\nwindow {case["window"]}'
    branch, _, levels = case['case'].partition(':')
    source = levels.replace('-', ' <- ')
    return f'{branch.upper()} {source}'.replace('@', '\nkeys pooled by ')


def main(args: argparse.Namespace) -> Path:
    """Draw the plot and print its path."""
    out = draw(args.results, args.out)
    print(out)
    return out
