"""mmengine's ``efficient_conv_bn_eval`` for necks that torch.fx cannot trace."""

from __future__ import annotations

from functools import wraps

from torch import nn

try:
    from mmengine.model import efficient_conv_bn_eval as host
except ImportError:  # mmengine < 0.8
    host = None

NECKS = f'{__package__.partition(".")[0]}.necks.'


def switch_necks_by_module() -> None:
    """Let ``efficient_conv_bn_eval=['neck']`` take our necks.

    mmengine traces what it is to change. Necks look at their maps, and tracing
    ends there with an error; what they have of convolutions with norms are
    mmcv's ConvModules, which have a switch of their own for it.
    """
    name = 'turn_on_efficient_conv_bn_eval_for_single_model'
    original = getattr(host, name, None)
    if original is None or hasattr(original, '__wrapped__'):
        return

    @wraps(original)
    def turn_on(model: nn.Module) -> None:
        if not any(cls.__module__.startswith(NECKS) for module in model.modules()
                   for cls in type(module).__mro__):
            original(model)
            return
        for module in model.modules():
            if hasattr(module, 'turn_on_efficient_conv_bn_eval'):
                module.turn_on_efficient_conv_bn_eval()

    setattr(host, name, turn_on)
