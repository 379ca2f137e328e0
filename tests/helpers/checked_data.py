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
    splits = splits or ('train', )
    if kind is UserWarning:
        with pytest.warns(kind, match=words):
            check_data(cfg, *splits)
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore' if kind else 'error', UserWarning)
        if kind is None:
            check_data(cfg, *splits)
        else:
            with pytest.raises(kind, match=words):
                check_data(cfg, *splits)
