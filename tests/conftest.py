"""Settings of every test."""

import logging
import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

# Processes side by side share the cores, and so do those that tests start.
workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
if workers > 1:
    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    os.environ['OMP_NUM_THREADS'] = str(threads)

# A busy machine is slow now and then: no time limits. The examples are the
# same in every run.
settings.register_profile(
    'project',
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('project')


READING = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


@pytest.fixture(autouse=True)
def _fresh():
    """Each test starts without an active scope and with one seed.

    Scopes are global and stay: overwrite_default_scope(None) keeps them. So is
    how torch reads files, which the tools set.
    """
    active = dict(DefaultScope._instance_dict)
    reading = os.environ.get(READING)
    DefaultScope._instance_dict.clear()
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(active)
    os.environ.pop(READING, None)
    if reading is not None:
        os.environ[READING] = reading


@pytest.fixture
def messages():
    """Warnings that reach mmengine's logger."""

    class Keep(logging.Handler):

        def __init__(self):
            super().__init__(logging.WARNING)
            self.texts = []

        def emit(self, record):
            self.texts.append(record.getMessage())

    logger = MMLogger.get_current_instance()
    keep = Keep()
    logger.addHandler(keep)
    yield keep.texts
    logger.removeHandler(keep)
