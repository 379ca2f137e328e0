"""Train a detector or a segmentor from a config."""

import sys

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.launch import prepare_training, train_parser
from fpt_plugin.utils.running import run_training

if __name__ == '__main__':
    args = train_parser().parse_args()
    # errors of the run itself keep their traces
    try:
        cfg = prepare_training(args)
    except (OSError, ValueError) as error:
        sys.exit(f'train failed: {error}')
    run_training(cfg)
