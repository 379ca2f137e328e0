"""Training of grafts alone."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..openmmlab.registry import register
from .grafts import NEUTRAL, new_modules, new_parameters


@register(HOOKS)
class TrainGraftOnlyHook(Hook):
    """Train what FPT and gated lambda layers add to a model, nothing else.

    No other parameter gets a gradient, so optimisers leave it alone, weight
    decay included, and batch norms among the rest stay in evaluation mode.
    Gradients pass through the heads; behind the neck there is nothing to
    compute. A learning rate of zero would do neither.

    In several processes the config needs ``find_unused_parameters = True``:
    the model is wrapped before hooks are called.
    """

    def before_train(self, runner: Runner) -> None:
        """Stop the gradients.

        Raises:
            ValueError: The model has neither FPT nor a gated lambda layer, or
                FSDP has joined their parameters with others.
        """
        learning = {id(p) for p in new_parameters(
            runner.model, NEUTRAL, type(self).__name__)}
        for parameter in runner.model.parameters():
            if id(parameter) not in learning:
                parameter.requires_grad_(False)
        self._norms = grafted_modules(runner.model)[1]

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: dict | None = None) -> None:
        """Keep the other batch norms as they are; loops call train()."""
        for norm in self._norms:
            norm.eval()


def grafted_modules(
        model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules that a graft adds, and the batch norms of all the rest."""
    new = new_modules(model)
    inside = {id(inner) for module in new for inner in module.modules()}
    norms = [module for module in model.modules()
             if isinstance(module, _BatchNorm) and id(module) not in inside]
    return new, norms
