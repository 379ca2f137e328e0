"""Settings of all tests."""

import logging
import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

# Parallel workers, and the processes that they start, share the cores.
workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
if workers > 1:
    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    os.environ['OMP_NUM_THREADS'] = str(threads)

# There are no time limits, because a busy machine may be slow. The examples are the
# same in every run.
settings.register_profile('project', deadline=None, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('project')
LOADING = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


@pytest.fixture(autouse=True)
def _fresh():
    """Start each test with one seed, without a default scope.

    Scopes are global. So is the variable for torch.load, which the tools set.
    """
    active = dict(DefaultScope._instance_dict)
    loading = os.environ.get(LOADING)
    DefaultScope._instance_dict.clear()
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(active)
    os.environ.pop(LOADING, None)
    if loading is not None:
        os.environ[LOADING] = loading


@pytest.fixture
def messages():
    """Collect the warnings of mmengine's logger."""
    texts, logger = [], MMLogger.get_current_instance()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)
