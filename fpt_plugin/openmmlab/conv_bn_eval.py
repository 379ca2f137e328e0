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
    """Make ``efficient_conv_bn_eval=['neck']`` work with the package's necks.

    mmengine traces the module. Tracing fails in necks that depend on the sizes
    of their maps. Their convolutions with norms are mmcv's ConvModules, which
    have their own switch for this option.
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
