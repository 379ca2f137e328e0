"""Same as ``python -m fpt_plugin doctor``; also runs without an installation."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from fpt_plugin.__main__ import run  # noqa: E402

if __name__ == '__main__':
    run('doctor')
