"""Keep deprecation warnings of libraries out of the tables that commands print."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# They are about calls of mmdet, mmseg and mmengine to torch and setuptools, which
# a user of a command cannot change.
CATEGORIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
MESSAGES = ('pkg_resources is deprecated', 'torch.meshgrid')


class _Deprecations(logging.Handler):
    """Collects formatted deprecation warnings, and shows all others."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[str] = []
        self.others = logging.StreamHandler()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        hidden = (*(category.__name__ + ':' for category in CATEGORIES), *MESSAGES)
        if any(part in text for part in hidden):
            self.held.append(text)
        else:
            self.others.emit(record)


@contextmanager
def quiet_deprecations() -> Iterator[None]:
    """Hide deprecation warnings, of child processes too; show them on failure."""
    before = os.environ.get('PYTHONWARNINGS')
    ignored = [*(f'ignore::{category.__name__}' for category in CATEGORIES),
               *(f'ignore:{message}:UserWarning' for message in MESSAGES)]
    # The last entry wins, so the user's settings come last.
    os.environ['PYTHONWARNINGS'] = ','.join(
        [*ignored, *([before] if before else [])])
    logger, handler = logging.getLogger('py.warnings'), _Deprecations()
    propagate, show = logger.propagate, warnings.showwarning
    logger.addHandler(handler)
    logger.propagate = False
    logging.captureWarnings(True)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            print(*handler.held, sep='', end='', file=handler.others.stream)
        raise
    finally:
        if not show.__module__.startswith('logging'):  # not captured before
            logging.captureWarnings(False)
        logger.propagate = propagate
        logger.removeHandler(handler)
        if before is None:
            del os.environ['PYTHONWARNINGS']
        else:
            os.environ['PYTHONWARNINGS'] = before
