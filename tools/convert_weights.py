"""Same as ``python -m fpt_plugin convert_weights``."""

from fpt_plugin.__main__ import run

if __name__ == '__main__':
    run('convert_weights')
