"""Activation checkpointing of mmengine's runner, with the gradients of without.

mmengine wraps ``forward`` in torch's reentrant checkpoint. That form finds the
graph through single tensors that need a gradient: a tuple of maps, or an image,
cuts it, and the parameters inside never move. It takes no keyword arguments.
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
    """Let ``activation_checkpointing`` of a config keep all gradients."""
    activation_checkpointing.wrap_forward = wrap_forward


def wrap_forward(forward: Callable) -> Callable:
    """Return a forward that is computed again in the backward pass.

    Args:
        forward: Of a module. One that is wrapped already stays as it is. Of a
            list or dict of modules, which nobody calls, theirs are wrapped.
    """
    module = _owner(forward)
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        for part in module.children():
            part.forward = wrap_forward(part.forward)
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
        if module is not None and not is_compiled():  # which keeps state itself
            state = _StateBefore(module)
            options['context_fn'] = lambda: (nullcontext(), state)
        # torch keeps random states of the devices of positional arguments.
        return checkpoint(run, args, kwargs, use_reentrant=False, **options)

    wrapper.recomputes = True
    return wrapper


def _owner(forward: Callable) -> nn.Module | None:
    """The module of a bound method, also below decorators."""
    while not hasattr(forward, '__self__') and hasattr(forward, '__wrapped__'):
        forward = forward.__wrapped__
    owner = getattr(forward, '__self__', None)
    return owner if isinstance(owner, nn.Module) else None


class _StateBefore:
    """Runs the second forward pass on the state from before the first one.

    Buffers and counters that change in a forward pass would change twice: the
    running statistics of batch norms, the warm-up of mmdet's DropBlock, which
    also sets the size of its mask. What the second pass changes is dropped.
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
        self.outside = []  # a stack: passes may be nested

    def __enter__(self) -> None:
        """Put the state from before the first pass in place."""
        self.outside.append([(part, dict(part._buffers), _counters(part))
                             for part, *_ in self.saved])
        for part, buffers, counters in self.saved:
            # Copies, for a graph that is run through twice.
            _put(part, {name: None if buffer is None else buffer.clone()
                        for name, buffer in buffers.items()}, counters)

    def __exit__(self, *error: object) -> None:
        """Put the state of the training back."""
        for part, buffers, counters in self.outside.pop():
            _put(part, buffers, counters)


def _counters(module: nn.Module) -> dict[str, int | float]:
    """Numbers among a module's attributes."""
    return {name: value for name, value in vars(module).items()
            if type(value) in (int, float)}


def _put(module: nn.Module, buffers: dict, counters: dict) -> None:
    module._buffers.update(buffers)
    vars(module).update(counters)
