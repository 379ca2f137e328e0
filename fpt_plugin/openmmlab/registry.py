"""Register classes in mmengine's registries, and look up those of the libraries."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from mmengine.registry import Registry


def register(registry: Registry) -> Callable[[Callable], Callable]:
    """Return a decorator that registers a class or function under its name.

    A reloaded module, as in a notebook after an edit, replaces its own earlier
    entries. Entries of other modules are never replaced.

    Raises:
        KeyError: Another module has registered the name.
    """

    def decorate(item: Callable) -> Callable:
        known = registry.module_dict.get(item.__name__)
        reloaded = known is not None and known.__module__ == item.__module__
        return registry.register_module(module=item, force=reloaded)

    return decorate


def lookup(registry: Registry, name: str | type) -> type | None:
    """Return the entry of a registry, or None if the name is not registered."""
    if not isinstance(name, str):
        return name
    try:
        found = registry.get(name)
    except RuntimeError:  # raised for some unknown names
        return None
    return found if callable(found) else None


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls).parameters)


def unknown_arguments(cls: type, args: dict) -> list[str]:
    """Return the names in ``args`` that the constructor of ``cls`` does not take."""
    parameters = _parameters(cls)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    return [name for name in args if name not in parameters]


def missing_arguments(cls: type, args: dict) -> list[str]:
    """Return the required arguments of ``cls`` that are not in ``args``."""
    return [
        name for name, p in _parameters(cls).items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL,
                                                   p.VAR_KEYWORD)
        and name not in args
    ]
