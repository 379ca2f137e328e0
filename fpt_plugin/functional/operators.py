"""Functions with hand-written forward and backward passes.

They need less memory than plain operators, but torch cannot differentiate or
transform them. For that, a formula of plain operators takes their place:

- second and higher derivatives, and several gradients at once: a backward pass that
  autograd records (``create_graph=True``) or batches (``is_grads_batched=True``)
  differentiates the formula;
- ``torch.func`` and forward-mode differentiation: the functions take their eager
  path, see :func:`.paths.requested_path`.

In a compiled graph each function is one custom operator of torch, so a compiled model
needs no more memory than an eager one, and its graph contains no loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import is_compiled, no_autocast

# torch < 2.4 has no custom operators: compiled graphs contain the formulas.
_HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')


class Operator:
    """A function of tensors, followed by options of other types.

    Args:
        name: Name of torch's operator ``fpt_plugin::name``.
        ranks: Names of the tensors, with their numbers of dimensions.
        options: Schema of the options, such as ``'int window'``.
        forward: ``forward(*tensors, *options)``. Returns a new tensor, not a view,
            with the strides of ``empty``.
        backward: ``backward(grad, *tensors, *options)``. Returns the gradients of
            the tensors.
        formula: The same as ``forward`` in plain operators.
        empty: ``empty(*tensors, *options)``. Returns an uninitialised output.
    """

    def __init__(self, name: str, ranks: dict[str, int], options: str,
                 forward: Callable[..., Tensor],
                 backward: Callable[..., Sequence[Tensor]],
                 formula: Callable[..., Tensor],
                 empty: Callable[..., Tensor]) -> None:
        self.ranks, self.count = list(ranks.values()), len(ranks)
        self.forward, self.backward, self.formula = forward, backward, formula
        if _HAS_CUSTOM_OPS:
            tensors = ', '.join(f'Tensor {x}' for x in ranks)
            self._compiled = self._define(
                name, f'{tensors}, SymInt[] sizes, {options}', empty)

    def __call__(self, *args: Any) -> Tensor:
        """Apply the function to tensors and options."""
        if not is_compiled():
            return _Function.apply(self, *args)
        if not _HAS_CUSTOM_OPS:
            return self.formula(*args)
        # Flattened, because torch 2.13 cannot always sort the strides of views with
        # dynamic sizes. The sizes of all tensors are passed as one list.
        tensors, options = args[:self.count], args[self.count:]
        sizes = [size for x in tensors for size in x.shape]
        return self._compiled(*(x.reshape(-1) for x in tensors), sizes, *options)

    def _arguments(self, args: Sequence[Any]) -> list[Any]:
        """Convert the arguments of :attr:`_compiled` to tensors and options."""
        sizes = iter(args[self.count])
        tensors = [x.view([next(sizes) for _ in range(rank)])
                   for x, rank in zip(args, self.ranks)]
        return [*tensors, *args[self.count + 1:]]

    def _define(self, name: str, arguments: str,
                empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Define torch's operators for the forward and the backward pass."""
        count = self.count

        def compute(*args: Any) -> Tensor:
            return self.forward(*self._arguments(args))

        def fake_output(*args: Any) -> Tensor:
            return empty(*self._arguments(args))

        def gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
            grads = self.backward(grad, *self._arguments(args))
            return tuple(x.reshape(-1) for x in grads)

        def fake_gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
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
                              fake_gradients)
        op = define(name, compute, f'({arguments}) -> Tensor', fake_output)
        op.register_autograd(differentiate, setup_context=save)
        return op


class _Function(torch.autograd.Function):
    """Apply an :class:`Operator` eagerly; only its tensors are saved."""

    @staticmethod
    def forward(ctx, operator, *args):
        ctx.operator, ctx.options = operator, args[operator.count:]
        ctx.save_for_backward(*args[:operator.count])
        return operator.forward(*args)

    @staticmethod
    def backward(ctx, grad):
        # create_graph=True, or several gradients at once
        if torch.is_grad_enabled() or _is_batched(grad):
            grads = formula_gradients(ctx.operator.formula, grad,
                                      ctx.saved_tensors, ctx.options,
                                      ctx.needs_input_grad[1:])
        else:
            grads = ctx.operator.backward(grad, *ctx.saved_tensors,
                                          *ctx.options)
        return (None, *grads, *[None] * len(ctx.options))


def _is_batched(grad: Tensor) -> bool:
    """Tell whether autograd batches gradients (``is_grads_batched``, ``vectorize``)."""
    # The name is not documented, so its absence is allowed for.
    batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', None)
    return batched is not None and batched(grad)


class _SecondDerivatives(torch.autograd.Function):
    """Return a result unchanged; a recorded backward pass uses its formula.

    Otherwise the gradient is passed on to the operator that computed the result.
    """

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
                *formula_gradients(ctx.formula, grad, tensors, ctx.options,
                                   ctx.needs_input_grad[3:]))


def with_second_derivatives(out: Tensor, formula: Callable[..., Tensor],
                            tensors: Sequence[Tensor],
                            *options: Any) -> Tensor:
    """Add second derivatives to the result of an operator that lacks them.

    Args:
        out: The result, not a view of ``tensors``.
        formula: ``formula(*tensors, *options)``, the same in plain operators.
        tensors: The tensors that ``out`` was computed from.
        options: The other arguments of ``formula``.
    """
    # Compiled graphs do not support second derivatives in any case.
    if is_compiled():
        return out
    return _SecondDerivatives.apply(out, formula, options, *tensors)


def formula_gradients(formula: Callable[..., Tensor], grad: Tensor,
                      tensors: Sequence[Tensor], options: Sequence[Any],
                      needed: Sequence[bool]) -> list[Tensor | None]:
    """Differentiate a formula; in grad mode autograd records the gradients.

    Args:
        formula: ``formula(*tensors, *options)``.
        grad: The gradient of its output.
        tensors: The tensors to differentiate by.
        options: The other arguments.
        needed: Whether each tensor needs a gradient; further entries are ignored.

    Returns:
        The gradient of each tensor, None if it is not needed.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), no_autocast(grad.device):
        # Views, because a tensor may depend on another one, or be the same.
        tensors = [x.view_as(x) for x in tensors]
        wanted = [x for x, need in zip(tensors, needed) if need]
        found = iter(
            torch.autograd.grad(
                formula(*tensors, *options), wanted, grad,
                create_graph=create_graph))
    return [next(found) if need else None for _, need in zip(tensors, needed)]
