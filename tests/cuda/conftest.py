"""The device of the tests marked ``cuda``.

``FPT_TEST_DEVICE=cpu`` runs them on a CPU, without the checks that need CUDA.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import torch


@pytest.fixture
def device():
    """The device, with TF32 off: cuDNN uses it by default."""
    name = os.environ.get('FPT_TEST_DEVICE', 'cuda')
    if name != 'cuda':
        yield torch.device(name)
        return
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    modes = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [mode.allow_tf32 for mode in modes]
    for mode in modes:
        mode.allow_tf32 = False
    yield torch.device(name)
    for mode, allowed in zip(modes, before):
        mode.allow_tf32 = allowed


@pytest.fixture
def no_sync(device):
    """A context manager in which waiting for the device is an error."""

    @contextmanager
    def forbidden():
        if device.type != 'cuda':
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode('default')

    return forbidden
