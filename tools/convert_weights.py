"""Convert weights of other projects for LambdaResNet and MobileNetV2."""

import sys

from fpt_plugin.utils.weights import main, parser

if __name__ == '__main__':
    try:
        main(parser().parse_args())
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'convert_weights.py: {error}')
