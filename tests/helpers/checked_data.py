"""Expect an error, a warning or nothing of the checks of a config's data."""

import warnings

import pytest
from mmengine.config import Config

from fpt_plugin.engine.data_checks import check_data


def expect(kind: type | None, words: str, cfg: Config, *splits: str) -> None:
    """Check the data of a config.

    Args:
        kind: ``ValueError``, ``UserWarning`` or None.
        words: A pattern in the message.
        cfg: The config.
        splits: The splits to check; default: ``'train'``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore' if kind is ValueError else 'error',
                              UserWarning)
        if kind is None:
            check_data(cfg, *splits or ('train', ))
        else:
            with pytest.raises(kind, match=words):
                check_data(cfg, *splits or ('train', ))
