"""Fix activation checkpointing in mmengine's runner, so that no gradient is lost.

mmengine wraps ``forward`` in torch's reentrant checkpoint. It follows the graph
only through single tensors that need a gradient. A tuple of maps, or an image
as input, breaks the graph, and the parameters inside are never updated. It
also takes no keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps

import torch
from mmengine.runner import activation_checkpointing
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..functional.checks import is_compiled


def keep_checkpointed_gradients() -> None:
    """Make a config's ``activation_checkpointing`` keep all gradients."""
    activation_checkpointing.wrap_forward = wrap_forward


def wrap_forward(forward: Callable) -> Callable:
    """Return a ``forward`` that is recomputed in the backward pass.

    Args:
        forward: A module's method. If it is wrapped already, it is returned
            unchanged. A ModuleList or ModuleDict is never called itself: its
            children are wrapped instead.
    """
    module = _owner(forward)
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        for child in module.children():
            child.forward = wrap_forward(child.forward)
        return forward
    if getattr(forward, 'recomputes', False):
        return forward

    def run(args: tuple, kwargs: dict):
        return forward(*args, **kwargs)

    @wraps(forward)
    def wrapper(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        options = {}
        # torch.compile keeps the state by itself.
        if module is not None and not is_compiled():
            state = _StateBefore(module)
            options['context_fn'] = lambda: (nullcontext(), state)
        # torch saves the random state only of devices of positional arguments.
        return checkpoint(run, args, kwargs, use_reentrant=False, **options)

    wrapper.recomputes = True
    return wrapper


def _owner(forward: Callable) -> nn.Module | None:
    """Return the module of a bound method, also if the method is decorated."""
    while not hasattr(forward, '__self__') and hasattr(forward, '__wrapped__'):
        forward = forward.__wrapped__
    owner = getattr(forward, '__self__', None)
    return owner if isinstance(owner, nn.Module) else None


class _StateBefore:
    """Run the second forward pass on the state from before the first one.

    Otherwise buffers and counters that change in a forward pass would change
    twice: the running statistics of batch norms, and the warm-up counter of
    mmdet's DropBlock, which also sets the size of its mask. Changes made by the
    second pass are dropped.
    """

    def __init__(self, module: nn.Module) -> None:
        self.saved = []
        for part in module.modules():
            if part.training:
                buffers = {
                    name: None if buffer is None else buffer.clone()
                    for name, buffer in part._buffers.items()
                }
                self.saved.append((part, buffers, _counters(part)))
        self.current = []  # a stack: passes may be nested

    def __enter__(self) -> None:
        """Set the state from before the first pass."""
        self.current.append([(part, dict(part._buffers), _counters(part))
                             for part, *_ in self.saved])
        for part, buffers, counters in self.saved:
            # Clone, because a retained graph runs backward more than once.
            _set_state(part, {name: None if buffer is None else buffer.clone()
                              for name, buffer in buffers.items()}, counters)

    def __exit__(self, *error: object) -> None:
        """Restore the current state."""
        for part, buffers, counters in self.current.pop():
            _set_state(part, buffers, counters)


def _counters(module: nn.Module) -> dict[str, int | float]:
    """Return the numeric attributes of a module."""
    return {name: value for name, value in vars(module).items()
            if type(value) in (int, float)}


def _set_state(module: nn.Module, buffers: dict, counters: dict) -> None:
    module._buffers.update(buffers)
    vars(module).update(counters)
