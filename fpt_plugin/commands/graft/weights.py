"""Give a plain model and its graft the same weights."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from ...engine.train_graft_only import grafted_modules
from ...io.checkpoints import some, summarised

_RANDOM_FILLS = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)


class ZerosForRandom(TorchDispatchMode):
    """Build modules fast: fill with zeros instead of random numbers.

    Use :func:`initialise_grafts` afterwards for FPT and lambda layers.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _RANDOM_FILLS:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def initialise_grafts(model: nn.Module) -> None:
    """Initialise the grafted modules as their constructors do."""
    for module in grafted_modules(model)[0]:
        for inner in module.modules():
            if isinstance(inner, BaseModule) and hasattr(inner,
                                                         'reset_parameters'):
                inner.reset_parameters()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw all weights, and change norms and biases from their initial values.

    Call :func:`calibrate` afterwards, so that batch norms keep the scale of the
    features in a deep network.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(x: Tensor, bound: float) -> Tensor:
        return torch.empty_like(x).uniform_(
            -bound, bound, generator=generator)

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
    """Set the running statistics of batch norms to those of a batch.

    Args:
        model: A model in evaluation mode, which is kept.
        extract: The module whose ``extract_feat`` is called.
        images: (B, C, H, W) with B > 1.
    """
    norms = [(norm, norm.momentum) for norm in _batch_norms(model)]
    for norm, _ in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        extract.extract_feat(images)
    except Exception:  # for example a norm that refuses a single pixel
        pass
    finally:
        for norm, momentum in norms:
            norm.eval()
            norm.momentum = momentum
            # The variance of a constant map is 0.
            norm.running_var.clamp_(min=1e-3)


def share_weights(plain: nn.Module, grafted: nn.Module) -> None:
    """Load the weights of a plain model into its graft, like a checkpoint.

    Raises:
        ValueError: Keys are unexpected, or missing outside the grafted modules.
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
    """Replace the zero weights of the grafted modules by random ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in grafted_modules(grafted)[0]:
        for parameter in module.parameters():
            if not parameter.any():
                parameter.uniform_(-size, size, generator=generator)
