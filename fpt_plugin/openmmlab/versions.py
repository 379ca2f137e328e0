"""Check that the installed OpenMMLab versions are supported."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from mmengine.utils import digit_version

from .pins import LIBRARIES


@cache
def check_versions() -> None:
    """Refuse unsupported OpenMMLab versions.

    It is called when a model is built, so that importing the package never
    fails. Libraries that are not installed are skipped.

    Raises:
        ImportError: A version is out of its range, or two distributions of
            one library are installed over each other.
    """
    for module, (names, low, high) in LIBRARIES.items():
        found = {name: version_of(name) for name in names}
        found = {name: v for name, v in found.items() if v is not None}
        if len(found) > 1:
            given = ', '.join(f'{name} {v}' for name, v in found.items())
            raise ImportError(
                f'{module} must come from one distribution, got {given}: their '
                'files overwrite each other. Uninstall all of them, then '
                f'install one: pip uninstall {" ".join(found)}')
        # The imported version takes precedence; a checkout has no metadata.
        given = getattr(sys.modules.get(module), '__version__', None) \
            or next(iter(found.values()), None)
        if given is None:
            continue
        if not digit_version(low) <= digit_version(given) < digit_version(high):
            raise ImportError(
                f'fpt_plugin needs {module} >={low},<{high}, got {given}. '
                f'Install another one, for example: pip install '
                f"'{names[0]}>={low},<{high}'")


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
