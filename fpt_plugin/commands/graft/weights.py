"""Weights for a plain model and for its graft: the same ones."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from ...engine.train_graft_only import grafted_modules
from ...io.checkpoints import some, summarised

_DRAWS = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)


class ZerosForRandom(TorchDispatchMode):
    """Build modules fast: zeros where they would draw numbers.

    :func:`initialise_grafts` then draws those of FPT and lambda layers.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _DRAWS:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def initialise_grafts(model: nn.Module) -> None:
    """Initialise what a graft adds, as its constructors do."""
    for module in grafted_modules(model)[0]:
        for inner in module.modules():
            if isinstance(inner, BaseModule) and hasattr(inner,
                                                         'reset_parameters'):
                inner.reset_parameters()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw all weights, and move norms and biases off their initialisation.

    Features of a deep net keep their scale as far as its norms see to it:
    :func:`calibrate` gives batch norms the statistics of their inputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(x: Tensor, reach: float) -> Tensor:
        return torch.empty_like(x).uniform_(
            -reach, reach, generator=generator)

    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() < 2:
            parameter.add_(noise(parameter, 0.1))
        else:
            fan_in = parameter[0].numel()
            parameter.copy_(noise(parameter, (3 / fan_in)**0.5))
    for norm in _batch_norms(model):
        norm.running_mean.add_(noise(norm.running_mean, 0.1))
        norm.running_var.mul_(1 + noise(norm.running_var, 0.3))


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def calibrate(model: nn.Module, extract: nn.Module, images: Tensor) -> None:
    """Give the batch norms of a model that run the statistics they see.

    Args:
        model: In evaluation mode, and again afterwards.
        extract: The module whose ``extract_feat`` is called.
        images: (B, C, H, W) with B > 1.
    """
    norms = [(norm, norm.momentum) for norm in _batch_norms(model)]
    for norm, _ in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        extract.extract_feat(images)
    except Exception:  # of a library: a norm may refuse a single pixel
        pass
    finally:
        for norm, momentum in norms:
            norm.eval()
            norm.momentum = momentum
            # A map of one pixel has no variance.
            norm.running_var.clamp_(min=1e-3)


def share_weights(plain: nn.Module, grafted: nn.Module) -> None:
    """Load the weights of a plain model into its graft, as a checkpoint is.

    Raises:
        ValueError: The graft has no place for some, or lacks some of its own
            that the graft did not add.
    """
    result = grafted.load_state_dict(plain.state_dict(), strict=False)
    added = {id(inner) for module in grafted_modules(grafted)[0]
             for inner in module.modules()}
    new = {f'{prefix}.{name}' for prefix, module in grafted.named_modules()
           if id(module) in added
           for name in (*module._parameters, *module._buffers)}
    lost = [*result.unexpected_keys,
            *(key for key in result.missing_keys if key not in new)]
    if lost:
        raise ValueError('the weights of the plain model do not all load into the '
                         f'graft: {some(summarised(lost, plain.state_dict()))}')


@torch.no_grad()
def nudge(grafted: nn.Module, size: float = 0.1, seed: int = 0) -> None:
    """Move what a graft starts at zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for module in grafted_modules(grafted)[0]:
        for parameter in module.parameters():
            if not parameter.any():
                parameter.uniform_(-size, size, generator=generator)
