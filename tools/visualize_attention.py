"""Draw where a model's Feature Pyramid Transformer looks in an image."""

import sys

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.visualize_attention import main, parser

if __name__ == '__main__':
    try:
        main(parser().parse_args())
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'visualize_attention failed: {error}')
