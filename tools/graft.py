"""Put FPT or lambda layers into any config, and prove that nothing changes."""

import sys

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.graft.command import main, parser

if __name__ == '__main__':
    try:
        main(parser().parse_args())
    except (ImportError, KeyError, OSError, RuntimeError, SyntaxError, TypeError,
            ValueError) as error:
        sys.exit(f'graft failed: {error}')
    except KeyboardInterrupt:
        sys.exit('graft interrupted; a sweep goes on with --resume')
