"""mmengine's registries: how the libraries are reached, and find what is ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from mmengine.registry import Registry


def register(registry: Registry) -> Callable[[Callable], Callable]:
    """Make a decorator that registers a class or function under its name.

    A reloaded module, as notebooks do it after each edit, replaces its own
    earlier entries. Entries of others are never replaced.

    Raises:
        KeyError: The name is someone else's.
    """

    def decorate(item: Callable) -> Callable:
        known = registry.module_dict.get(item.__name__)
        reloaded = known is not None and known.__module__ == item.__module__
        return registry.register_module(module=item, force=reloaded)

    return decorate


def lookup(registry: Registry, name: str | type) -> type | None:
    """What a registry holds under a name; None where it does not know it."""
    if not isinstance(name, str):
        return name
    try:
        found = registry.get(name)
    except RuntimeError:  # what Registry.get makes of an unknown name
        return None
    return found if callable(found) else None


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls).parameters)


def unknown_arguments(cls: type, args: dict) -> list[str]:
    """Names in ``args`` that the constructor of ``cls`` does not take."""
    parameters = _parameters(cls)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    return [name for name in args if name not in parameters]


def missing_arguments(cls: type, args: dict) -> list[str]:
    """Names that the constructor of ``cls`` requires and ``args`` lacks."""
    return [
        name for name, p in _parameters(cls).items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL,
                                                   p.VAR_KEYWORD)
        and name not in args
    ]
