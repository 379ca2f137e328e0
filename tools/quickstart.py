"""Train, evaluate and draw a small model; see quickstart.sh."""

import sys

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.quickstart import parser, run

if __name__ == '__main__':
    try:
        run(parser().parse_args())
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'quickstart failed: {error}')
    except KeyboardInterrupt:
        sys.exit('quickstart interrupted: the same command goes on from the '
                 'last finished epoch')
