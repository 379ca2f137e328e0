"""Find the modules and parameters that a graft adds to a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from ..backbones import LambdaResNet
from ..layers import LambdaLayer
from ..necks import FPT

# The grafts, by the class that contains them.
KINDS = ('FPT', 'LambdaLayer', 'LambdaResNet')
# Grafts that do not change the outputs of a model before training.
NEUTRAL = ('FPT', 'LambdaLayer')


def new_modules(model: nn.Module,
                kinds: Collection[str] = NEUTRAL) -> list[nn.Module]:
    """Return the modules that grafts of these kinds add to a model.

    Args:
        model: A detector or segmentor, possibly in a wrapper.
        kinds: Some of :data:`KINDS`: FPT without its pyramid; gated lambda
            layers; the stem and the lambda layers of a LambdaResNet.
    """
    return [new for module in model.modules()
            for new in _added_by(module, kinds)]


def _added_by(module: nn.Module, kinds: Collection[str]) -> Iterator[nn.Module]:
    if isinstance(module, FPT) and 'FPT' in kinds:
        yield from (child for name, child in module.named_children()
                    if name != 'pyramid')
    elif isinstance(module, LambdaLayer) and module.residual:
        if 'LambdaLayer' in kinds:
            yield module
    elif isinstance(module, LambdaResNet) and 'LambdaResNet' in kinds:
        if hasattr(module, 'stem'):
            yield module.stem
        yield from (layer for layer in module.modules()
                    if isinstance(layer, LambdaLayer))


def new_parameters(model: nn.Module, kinds: Collection[str],
                   user: str) -> list[nn.Parameter]:
    """Return the parameters of :func:`new_modules`.

    Args:
        model: A detector or segmentor, possibly in a wrapper.
        kinds: As in :func:`new_modules`.
        user: Name of the calling class, for messages.

    Raises:
        ValueError: There are none, or FSDP has flattened the parameters of
            several modules into one.
    """
    flat = [name for name, parameter in model.named_parameters()
            if getattr(parameter, '_is_flat_param', False)]
    if flat:
        raise ValueError(
            f'{user} needs single parameters, and FSDP has joined those of '
            f'several modules (as {flat[0]}): set use_orig_params=True in the '
            'model wrapper')
    new = [parameter for module in new_modules(model, kinds)
           for parameter in module.parameters()]
    if not new:
        names = dict(FPT='FPT', LambdaLayer='a gated LambdaLayer',
                     LambdaResNet='a LambdaResNet')
        expected = ' or '.join(names[kind] for kind in KINDS if kind in kinds)
        raise ValueError(f'{user} needs a model with {expected}, got '
                         f'{type(model).__name__} without')
    return new
