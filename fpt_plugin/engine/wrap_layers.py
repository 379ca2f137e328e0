"""Which layers FSDP shards one by one."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import FUNCTIONS
from torch import nn

from ..openmmlab.registry import register

# FPT's branches, and the blocks of the hosts' ResNets and of LambdaResNet.
LAYERS = ('SelfTransformer', 'GroundingTransformer',
          'LocalGroundingTransformer', 'RenderingTransformer', 'Bottleneck',
          'BasicBlock')


@register(FUNCTIONS)
def wrap_layers(module: nn.Module,
                recurse: bool,
                nonwrapped_numel: int,
                layers: Sequence[str] = LAYERS) -> bool:
    """An auto_wrap_policy of FSDP that a config can name.

    Each module of these classes is gathered when it runs and freed after it;
    torch's own policies want the classes themselves, which a config file
    cannot hold::

        model_wrapper=dict(type='MMFullyShardedDataParallel',
                           auto_wrap_policy=dict(type='wrap_layers'))

    Args:
        module: The module in question.
        recurse: FSDP asks whether to look inside; always.
        nonwrapped_numel: Parameters that are not in a unit yet; not used.
        layers: Names of classes; their subclasses count too.

    Returns:
        Whether the module becomes a unit of its own.

    Raises:
        TypeError: ``layers`` is not a list of names.
    """
    if isinstance(layers, str) or not all(isinstance(x, str) for x in layers):
        raise TypeError(
            f'layers must be a list of names of classes, got {layers!r}')
    return recurse or any(cls.__name__ in layers
                          for cls in type(module).__mro__)
