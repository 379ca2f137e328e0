"""The image that the tests of attention maps read."""

import cv2
import numpy as np
import pytest


@pytest.fixture
def image(tmp_path):
    """Noise of 110x70 pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (70, 110, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), pixels)
    return tmp_path / 'image.png'
