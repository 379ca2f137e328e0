"""Write pictures to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np

from ...io.files import replacing


def write_rows(rows: Sequence[np.ndarray], path: str | Path) -> Path:
    """Write pictures below each other, padded with white to one width.

    Args:
        rows: RGB pictures (H, W, 3), uint8, of any sizes.
        path: The file; its suffix selects the format.

    Returns:
        ``path``.

    Raises:
        OSError: The file cannot be written; no partial file is left.
    """
    width = max(row.shape[1] for row in rows)
    rows = [
        mmcv.impad(row, shape=(row.shape[0], width), pad_val=(255, 255, 255))
        for row in rows
    ]
    picture = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), picture):
            raise OSError(f'cannot write {path}: is the disk full?')
    return Path(path)
