"""Count a model's parameters, multiply-adds and activation memory by part."""

import sys

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.complexity import main, parser

if __name__ == '__main__':
    try:
        main(parser().parse_args())
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f'complexity failed: {error}')
