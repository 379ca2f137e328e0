"""Weights for a plain model and for its graft: the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...engine.train_graft_only import grafted_modules
from ...layers import LambdaLayer
from ...necks import FPT
from ...openmmlab.models import without_weights
from ..convert_weights.command import summarised

_FILLS = ('uniform_', 'normal_', 'trunc_normal_', 'xavier_uniform_',
          'xavier_normal_', 'kaiming_uniform_', 'kaiming_normal_',
          'orthogonal_')


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config, which fetches no weights."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(without_weights(cfg.model))


@contextmanager
def zeros_for_random() -> Iterator[None]:
    """Build the libraries' modules fast: zeros where they would draw numbers.

    FPT and lambda layers are initialised as ever.
    """

    def zero(tensor: Tensor, *args, **kwargs) -> Tensor:
        with torch.no_grad():
            return tensor.zero_()

    fills = {name: getattr(nn.init, name) for name in _FILLS}

    def drawn(init):

        @wraps(init)
        def wrapped(*args, **kwargs):
            with mock.patch.multiple(nn.init, **fills):
                init(*args, **kwargs)

        return wrapped

    with ExitStack() as stack:
        for cls in (FPT, LambdaLayer):
            stack.enter_context(
                mock.patch.object(cls, '__init__', drawn(cls.__init__)))
        stack.enter_context(
            mock.patch.multiple(nn.init, **dict.fromkeys(fills, zero)))
        yield


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
        some = ', '.join(summarised(lost, plain.state_dict())[:4])
        raise ValueError('the weights of the plain model do not all load into '
                         f'the graft: {some}')


@torch.no_grad()
def nudge(grafted: nn.Module, size: float = 0.1, seed: int = 0) -> None:
    """Move what a graft starts at zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for module in grafted_modules(grafted)[0]:
        for parameter in module.parameters():
            if not parameter.any():
                parameter.uniform_(-size, size, generator=generator)


def load_weights(plain: nn.Module, state_dict: Mapping[str, Tensor],
                 source: str) -> list[str]:
    """Load a checkpoint into the model that it was made of.

    Args:
        plain: The model.
        state_dict: Its tensors.
        source: What it is called in messages.

    Returns:
        Keys of the checkpoint that are no part of the model, such as those of
        an average of its weights.

    Raises:
        ValueError: It is of another model.
    """
    children = {name for name, _ in plain.named_children()}
    kind = type(plain).__name__
    try:
        result = plain.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:  # torch's way to name shapes
        lines = str(error).strip().splitlines()[1:3]
        raise ValueError(
            f'{source} is a checkpoint of another model than this '
            f'{kind}: {" ".join(line.strip() for line in lines)}') from error
    missing = [key for key in result.missing_keys
               if not key.endswith('num_batches_tracked')]
    foreign = [key for key in result.unexpected_keys
               if key.split('.')[0] in children]
    if missing or foreign:
        parts = [f'{len(keys)} keys {what} ({", ".join(keys[:3])}'
                 f'{", ..." if len(keys) > 3 else ""})'
                 for what, keys in (('of the model are missing', missing),
                                    ('have no place in it', foreign)) if keys]
        raise ValueError(f'{source} is a checkpoint of another model than this '
                         f'{kind}: {" and ".join(parts)}')
    return [key for key in result.unexpected_keys if key not in foreign]
