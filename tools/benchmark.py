"""Measure speed, memory and error side by side."""

import sys

import fpt_plugin  # noqa: F401  (registers the necks)
from fpt_plugin.utils.benchmark_report import parser, run

if __name__ == '__main__':
    try:
        run(parser().parse_args())
    except ValueError as error:
        sys.exit(f'benchmark.py: {error}')
