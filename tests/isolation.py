"""Several runs of mmengine in one process, each as if it were alone."""

import contextlib

from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


def kept_by_name():
    """mmengine's classes that keep their instances by name."""
    found = [DefaultScope, MMLogger, MessageHub, Visualizer]
    for cls in found:  # grows on the way
        found += cls.__subclasses__()
    return found


@contextlib.contextmanager
def alone():
    """As in a process of its own: nothing that mmengine keeps stays.

    Two runs would draw and log with the first one's visualizer.
    """
    outside = {cls: dict(cls._instance_dict) for cls in kept_by_name()}
    for cls in outside:
        cls._instance_dict.clear()
    try:
        yield
    finally:
        for cls in kept_by_name():
            for made in cls._instance_dict.values():
                for handler in getattr(made, 'handlers', ()):
                    handler.close()
            cls._instance_dict.clear()
            cls._instance_dict.update(outside.get(cls, {}))
