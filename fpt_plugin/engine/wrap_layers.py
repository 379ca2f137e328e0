"""Choose the layers that FSDP shards separately."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import FUNCTIONS
from torch import nn

from ..openmmlab.registry import register

# FPT's branches, and the blocks of the libraries' ResNets and of LambdaResNet.
LAYERS = ('SelfTransformer', 'GroundingTransformer',
          'LocalGroundingTransformer', 'RenderingTransformer', 'Bottleneck',
          'BasicBlock')


@register(FUNCTIONS)
def wrap_layers(module: nn.Module,
                recurse: bool,
                nonwrapped_numel: int,
                layers: Sequence[str] = LAYERS) -> bool:
    """Decide whether FSDP shards a module separately (an auto_wrap_policy).

    Each module of these classes is gathered when it runs and freed afterwards.
    torch's own policies need classes, which a config file cannot contain; this
    one takes their names::

        model_wrapper=dict(type='MMFullyShardedDataParallel',
                           auto_wrap_policy=dict(type='wrap_layers'))

    Args:
        module: The module.
        recurse: Whether FSDP decides about the children; then always True.
        nonwrapped_numel: Parameters that are not in a unit yet; not used.
        layers: Names of classes, including their subclasses.

    Returns:
        Whether the module becomes a unit.

    Raises:
        TypeError: ``layers`` is not a list of names.
    """
    if isinstance(layers, str) or not all(isinstance(x, str) for x in layers):
        raise TypeError(
            f'layers must be a list of class names, got {layers!r}')
    return recurse or any(cls.__name__ in layers
                          for cls in type(module).__mro__)
