"""What training adds to the hosts' runner."""

from .hooks import TrainGraftOnly

__all__ = ['TrainGraftOnly']
