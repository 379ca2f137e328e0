"""Strip a training checkpoint for release."""

import sys

import fpt_plugin  # noqa: F401  (lets torch read what training saved)
from fpt_plugin.utils.publish import main, parser

if __name__ == '__main__':
    try:
        main(parser().parse_args())
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'publish_model failed: {error}')
