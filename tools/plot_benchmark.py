"""Draw the README's plot from the results of tools/benchmark.py."""

import sys

from fpt_plugin.utils.benchmark_plot import draw, parser

if __name__ == '__main__':
    args = parser().parse_args()
    try:
        print(draw(args.results, args.out))
    except (OSError, ValueError) as error:
        sys.exit(f'plot_benchmark.py: {error}')
