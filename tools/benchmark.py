"""Same as ``python -m fpt_plugin benchmark``."""

from fpt_plugin.__main__ import run

if __name__ == '__main__':
    run('benchmark')
