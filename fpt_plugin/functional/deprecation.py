"""Old names of arguments, which calls may still use."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable


def renamed_argument(old: str, new: str) -> Callable[[Callable], Callable]:
    """Let a function accept an argument by its old name, too.

    A call with the old keyword raises a DeprecationWarning; one with both names
    raises a TypeError. Positional calls are not affected.

    Args:
        old: The keyword of earlier versions.
        new: The present name, which is in the signature.

    Returns:
        A decorator.
    """

    def decorate(function: Callable) -> Callable:
        position = list(inspect.signature(function).parameters).index(new)

        @functools.wraps(function)
        def accept(*args, **kwargs):
            if old in kwargs:
                name = function.__name__
                if new in kwargs or len(args) > position:
                    raise TypeError(f'{name}() must get {new} once, got {new} and '
                                    f'its old name {old}')
                warnings.warn(
                    f'{old} of {name}() is deprecated, use {new}',
                    DeprecationWarning,
                    stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return accept

    return decorate
