"""Same as ``python -m fpt_plugin visualize_attention``."""

from fpt_plugin.__main__ import run

if __name__ == '__main__':
    run('visualize_attention')
