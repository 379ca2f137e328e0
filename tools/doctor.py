"""Diagnose the environment, and say what cures it."""

import sys
from pathlib import Path
from types import ModuleType

# The package without its __init__, which imports the hosts: they may be what
# is broken. It is beside the tools, or above them in an installed wheel.
ROOT = Path(__file__).resolve().parents[1]
package = ModuleType('fpt_plugin')
package.__path__ = [
    str(ROOT.parent if ROOT.name == '.mim' else ROOT / 'fpt_plugin')
]
sys.modules['fpt_plugin'] = package

from fpt_plugin.utils.doctor import main, parser  # noqa: E402

if __name__ == '__main__':
    try:
        sys.exit(main(parser().parse_args()).failed)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'doctor failed: {error}')
