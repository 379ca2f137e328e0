"""Contents of folders."""

from pathlib import Path


def names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
