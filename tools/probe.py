"""Same as ``python -m fpt_plugin probe``."""

from fpt_plugin.__main__ import run

if __name__ == '__main__':
    run('probe')
