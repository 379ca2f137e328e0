"""Write backbone and neck of a model as ONNX or as a program of torch.export."""

import sys

import fpt_plugin  # noqa: F401  (mends the hosts before a config is read)
from fpt_plugin.utils.export_command import main, parser

if __name__ == '__main__':
    try:
        main(parser().parse_args())
    except (ImportError, KeyError, OSError, RuntimeError, TypeError,
            ValueError) as error:
        sys.exit(f'export failed: {error}')
