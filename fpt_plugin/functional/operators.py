"""Functions whose forward and backward pass are written by hand.

They save memory that plain operators take, but torch cannot look inside. What
it cannot do with them is done by a formula of plain operators instead:

- second and higher derivatives, and several gradients at once: a backward pass
  that autograd records (``create_graph=True``) or batches
  (``is_grads_batched=True``) differentiates the formula;
- ``torch.func`` and forward-mode differentiation: the functions take their eager
  path, see :func:`.paths.requested`.

While a graph is compiled, each is one operator of torch, so that compiled
models keep the memory of eager ones and need no loops of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import is_compiled, no_autocast

# Older than torch 2.4 there is none: graphs hold the formulas.
_CAN_DEFINE = hasattr(torch.library, 'custom_op')


class Operator:
    """A function of some tensors and of options that are no tensors.

    Args:
        name: Of torch's operator ``fpt_plugin::name``.
        ranks: Names of the tensors, which come first, and their dimensions.
        options: The schema of the options, such as ``'int window'``.
        forward: Of tensors and options; no view, in the layout of ``empty``.
        backward: Of the output's gradient, tensors and options; returns the
            gradients of the tensors.
        formula: The same as ``forward`` in plain operators.
        empty: Of tensors and options; a tensor like the output.
    """

    def __init__(self, name: str, ranks: dict[str, int], options: str,
                 forward: Callable[..., Tensor],
                 backward: Callable[..., Sequence[Tensor]],
                 formula: Callable[..., Tensor],
                 empty: Callable[..., Tensor]) -> None:
        self.ranks, self.count = list(ranks.values()), len(ranks)
        self.forward, self.backward, self.formula = forward, backward, formula
        if _CAN_DEFINE:
            tensors = ', '.join(f'Tensor {x}' for x in ranks)
            self._compiled = self._define(
                name, f'{tensors}, SymInt[] sizes, {options}', empty)

    def __call__(self, *args: Any) -> Tensor:
        """Of tensors and options."""
        if not is_compiled():
            return _Function.apply(self, *args)
        if not _CAN_DEFINE:
            return self.formula(*args)
        # In one dimension, because torch 2.13 cannot always sort the strides of
        # views whose sizes are free.
        tensors, options = args[:self.count], args[self.count:]
        sizes = [size for x in tensors for size in x.shape]
        return self._compiled(*(x.reshape(-1) for x in tensors), sizes, *options)

    def _arguments(self, args: Sequence[Any]) -> list[Any]:
        """Tensors and options, from those of :attr:`_compiled`."""
        sizes = iter(args[self.count])
        tensors = [x.view([next(sizes) for _ in range(rank)])
                   for x, rank in zip(args, self.ranks)]
        return [*tensors, *args[self.count + 1:]]

    def _define(self, name: str, arguments: str,
                empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Torch's operators of the forward and of the backward pass."""
        count = self.count

        def compute(*args: Any) -> Tensor:
            return self.forward(*self._arguments(args))

        def like(*args: Any) -> Tensor:
            return empty(*self._arguments(args))

        def gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
            grads = self.backward(grad, *self._arguments(args))
            return tuple(x.reshape(-1) for x in grads)

        def empty_gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
            return tuple(x.new_empty(x.shape) for x in args[:count])

        def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
            ctx.save_for_backward(*inputs[:count])
            ctx.rest = inputs[count:]

        def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            grads = gradients_op(grad, *ctx.saved_tensors, *ctx.rest)
            return (*grads, *[None] * len(ctx.rest))

        def define(name: str, function: Callable, schema: str,
                   fake: Callable) -> Callable:
            op = torch.library.custom_op(
                f'fpt_plugin::{name}', function, mutates_args=(), schema=schema)
            op.register_fake(fake)
            return op

        result = ', '.join(['Tensor'] * count)
        gradients_op = define(f'{name}_backward', gradients,
                              f'(Tensor grad, {arguments}) -> ({result})',
                              empty_gradients)
        op = define(name, compute, f'({arguments}) -> Tensor', like)
        op.register_autograd(differentiate, setup_context=save)
        return op


class _Function(torch.autograd.Function):
    """Saves the tensors and nothing else."""

    @staticmethod
    def forward(ctx, operator, *args):
        ctx.operator, ctx.options = operator, args[operator.count:]
        ctx.save_for_backward(*args[:operator.count])
        return operator.forward(*args)

    @staticmethod
    def backward(ctx, grad):
        # create_graph=True, or several gradients at once
        if torch.is_grad_enabled() or _is_batched(grad):
            grads = recorded_gradients(ctx.operator.formula, grad,
                                       ctx.saved_tensors, ctx.options,
                                       ctx.needs_input_grad[1:])
        else:
            grads = ctx.operator.backward(grad, *ctx.saved_tensors,
                                          *ctx.options)
        return (None, *grads, *[None] * len(ctx.options))


def _is_batched(grad: Tensor) -> bool:
    """Whether ``is_grads_batched`` or ``vectorize`` of torch.autograd is at work."""
    # Not documented, so nothing depends on it.
    batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', None)
    return batched is not None and batched(grad)


class _Again(torch.autograd.Function):
    """Passes a result on; recorded backward passes take its formula."""

    @staticmethod
    def forward(ctx, out, formula, options, *tensors):
        ctx.formula, ctx.options = formula, options
        ctx.save_for_backward(*tensors)
        return out.view_as(out)

    @staticmethod
    def backward(ctx, grad):
        tensors = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return (grad, None, None, *[None] * len(tensors))
        return (None, None, None,
                *recorded_gradients(ctx.formula, grad, tensors, ctx.options,
                                    ctx.needs_input_grad[3:]))


def differentiable_again(out: Tensor, formula: Callable[..., Tensor],
                         tensors: Sequence[Tensor],
                         *options: Any) -> Tensor:
    """Give a result of torch's own the second derivatives that it lacks.

    Args:
        out: The result, not a view of ``tensors``.
        formula: The same in plain operators.
        tensors: What it is differentiated by, and ``out`` was computed from.
        options: The other arguments of ``formula``.
    """
    # Compiled graphs refuse second derivatives themselves.
    if is_compiled():
        return out
    return _Again.apply(out, formula, options, *tensors)


def recorded_gradients(formula: Callable[..., Tensor], grad: Tensor,
                       tensors: Sequence[Tensor], options: Sequence[Any],
                       needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of plain operators; in grad mode autograd records them.

    Args:
        formula: Of tensors and options.
        grad: Gradient of its output.
        tensors: What it is differentiated by.
        options: The other arguments.
        needed: Whether each tensor needs its gradient; further ones are ignored.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), no_autocast(grad.device):
        # One tensor may be made of another, or be the same.
        tensors = [x.view_as(x) for x in tensors]
        wanted = [x for x, need in zip(tensors, needed) if need]
        found = iter(
            torch.autograd.grad(
                formula(*tensors, *options), wanted, grad, create_graph=again))
    return [next(found) if need else None for _, need in zip(tensors, needed)]
