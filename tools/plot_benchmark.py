"""Same as ``python -m fpt_plugin plot_benchmark``."""

from fpt_plugin.__main__ import run

if __name__ == '__main__':
    run('plot_benchmark')
