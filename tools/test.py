"""Test (and evaluate) a detector or a segmentor from a config."""

import sys

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.launch import prepare_test, test_parser
from fpt_plugin.utils.running import run_test

if __name__ == '__main__':
    args = test_parser().parse_args()
    # errors of the run itself keep their traces
    try:
        cfg = prepare_test(args)
    except (OSError, ValueError) as error:
        sys.exit(f'test failed: {error}')
    run_test(cfg, args.out)
