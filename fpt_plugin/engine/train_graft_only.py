"""Train only the grafts of a model."""

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
    """Trains only the branches of FPT and gated lambda layers of a model.

    The other parameters get no gradient, so optimisers do not change them, not
    even by weight decay. The other batch norms stay in evaluation mode.
    Gradients pass through the heads, but the backbone needs no backward pass. A
    learning rate of 0 would have neither effect.

    In several processes the config needs ``find_unused_parameters = True``,
    because the model is wrapped before hooks are called.
    """

    def before_train(self, runner: Runner) -> None:
        """Switch off the gradients of all other parameters.

        Raises:
            ValueError: The model has neither FPT nor a gated lambda layer, or
                FSDP has flattened their parameters together with others.
        """
        trained = {id(p) for p in new_parameters(
            runner.model, NEUTRAL, type(self).__name__)}
        for parameter in runner.model.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
        self._norms = grafted_modules(runner.model)[1]

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: dict | None = None) -> None:
        """Keep the other batch norms in evaluation mode; loops call train()."""
        for norm in self._norms:
            norm.eval()


def grafted_modules(
        model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the modules that a graft adds, and the batch norms of the rest."""
    new = new_modules(model)
    inside = {id(inner) for module in new for inner in module.modules()}
    norms = [module for module in model.modules()
             if isinstance(module, _BatchNorm) and id(module) not in inside]
    return new, norms
