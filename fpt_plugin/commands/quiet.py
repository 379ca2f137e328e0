"""Keep deprecation warnings of libraries out of the tables that commands print."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Nothing that a user of a command can act on: how mmdet, mmseg and mmengine call
# torch and setuptools.
CATEGORIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
MESSAGES = ('pkg_resources is deprecated', 'torch.meshgrid')


class _Deprecations(logging.Handler):
    """Holds formatted warnings back that are deprecations, and shows others."""

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
    # The last entry wins: what the user has set comes behind.
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
        if not show.__module__.startswith('logging'):  # captured before, too
            logging.captureWarnings(False)
        logger.propagate = propagate
        logger.removeHandler(handler)
        if before is None:
            del os.environ['PYTHONWARNINGS']
        else:
            os.environ['PYTHONWARNINGS'] = before
