"""A detector with deformable attention reads as many maps as its neck gives.

Where the numbers differ mmdet says ``index 4 is out of bounds for dimension 0``
or ``The size of tensor a (4) must match the size of tensor b (3)``, and with a
single map it says nothing and attends to it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn


def check_levels(model: nn.Module) -> None:
    """Compare what the detectors in a model say of their levels.

    Args:
        model: A detector, or what wraps one; others are left alone.

    Raises:
        ValueError: ``num_outs`` of the neck, ``num_feature_levels`` of the
            detector and ``num_levels`` of its attention are not one number.
    """
    for detector in _detectors(model):
        wanted = detector.num_feature_levels
        num_outs = getattr(detector.neck, 'num_outs', None)
        if isinstance(num_outs, int) and num_outs != wanted:
            raise ValueError(_message(f'num_outs={num_outs} in the neck',
                                      wanted))
        for part in ('encoder', 'decoder'):
            for layer in getattr(detector, part).modules():
                levels = getattr(layer, 'num_levels', wanted)
                if hasattr(layer, 'sampling_offsets') and levels != wanted:
                    raise ValueError(_message(
                        f'num_levels={levels} in the attention of the {part}',
                        wanted))


def watch_levels(model: nn.Module) -> None:
    """Compare the numbers, and count the neck's maps in each forward pass.

    Not every neck says how many maps it gives. More than once is harmless.

    Raises:
        ValueError: As :func:`check_levels`; a forward pass whose maps are of
            another number raises it too.
    """
    check_levels(model)
    for detector in _detectors(model):
        wanted = detector.num_feature_levels
        counters = [hook for hook in detector.neck._forward_hooks.values()
                    if isinstance(hook, _Counter)]
        if counters:
            counters[0].wanted = wanted
        else:
            detector.neck.register_forward_hook(_Counter(wanted))


class _Counter:
    """A forward hook that is saved and copied with its neck."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted

    def __call__(self, neck: nn.Module, inputs: tuple,
                 maps: Sequence[Tensor]) -> None:
        check_maps(maps, self.wanted)


def check_maps(maps: Sequence[Tensor], num_feature_levels: int) -> None:
    """Require a map for each level.

    Raises:
        ValueError: The numbers differ.
    """
    if len(maps) != num_feature_levels:
        raise ValueError(
            _message(f'{len(maps)} maps of the neck', num_feature_levels))


def _detectors(model: nn.Module) -> Iterator[nn.Module]:
    """Deformable DETR of mmdet and its kin, wherever they are in a model."""
    names = ('num_feature_levels', 'neck', 'encoder', 'decoder')
    for module in model.modules():
        if all(hasattr(module, name) for name in names):
            yield module


def _message(given: str, wanted: int) -> str:
    return (f"num_outs of the neck, the detector's num_feature_levels and "
            'num_levels of its attention (self_attn_cfg of the encoder, '
            'cross_attn_cfg of the decoder) must be one number, got '
            f'{given} and num_feature_levels={wanted}')
