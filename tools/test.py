"""Test (and evaluate) a detector or a segmentor from a config."""

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.launch import test, test_parser

if __name__ == '__main__':
    test(test_parser().parse_args())
