"""Check that the device supports a config, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper

# Devices that the gradient scaler of mmengine's AmpOptimWrapper supports.
AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')
SYNC_NORMS = ('SyncBN', 'MMSyncBN')


def check_amp(cfg: Config, flag: bool) -> None:
    """Reject mixed precision if mmengine has no gradient scaler for the device.

    Args:
        cfg: The config to train with.
        flag: Whether ``--amp`` was given; a config can also set it.

    Raises:
        ValueError: The device is not one of :data:`AMP_DEVICES`.
    """
    wrapper = (cfg.get('optim_wrapper') or {}).get('type')
    device = get_device()
    if wrapper not in ('AmpOptimWrapper', AmpOptimWrapper) \
            or device in AMP_DEVICES:
        return
    setting, instead = ('--amp', 'leave the flag out') if flag else (
        "optim_wrapper.type='AmpOptimWrapper' of the config",
        "write optim_wrapper.type='OptimWrapper', without loss_scale and dtype,")
    raise ValueError(f'{setting} needs a CUDA device, got {device!r}: mmengine '
                     f'scales gradients only on {", ".join(AMP_DEVICES)}; '
                     f'{instead} to train in float32')


def check_sync_bn(cfg: Config) -> None:
    """Reject synchronised batch norms in several processes on a CPU.

    Raises:
        ValueError: The model has some; the message names all of them.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    found = list(_keys_of_type(cfg.get('model'), 'model', SYNC_NORMS))
    if found or cfg.get('sync_bn'):
        options = ' '.join(f'{key}=BN' for key in found) or 'sync_bn=None'
        raise ValueError(
            'SyncBN needs CUDA devices in several processes, got '
            f"launcher={cfg.launcher!r} on 'cpu'; train in one process, or with "
            f'--cfg-options {options}')


def _keys_of_type(node, key: str, types: tuple[str, ...]) -> Iterator[str]:
    """Find the config keys of these types, in the form of --cfg-options."""
    if isinstance(node, dict):
        if node.get('type') in types:
            yield f'{key}.type'
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for name, child in items:
        yield from _keys_of_type(child, f'{key}.{name}', types)
