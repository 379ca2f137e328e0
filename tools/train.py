"""Train a detector or a segmentor from a config."""

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.launch import train, train_parser

if __name__ == '__main__':
    train(train_parser().parse_args())
