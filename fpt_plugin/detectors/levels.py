"""Check that a neck returns as many maps as deformable attention reads.

If the numbers differ, mmdet's errors are ``index 4 is out of bounds for
dimension 0`` or ``The size of tensor a (4) must match the size of tensor b
(3)``. A single map gives no error: the attention then reads only that map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn


def check_levels(model: nn.Module) -> None:
    """Compare the numbers of levels in the configs of a model's detectors.

    Args:
        model: A detector or a model that contains one; other models pass.

    Raises:
        ValueError: ``num_outs`` of the neck, ``num_feature_levels`` of the
            detector and ``num_levels`` of its attention are not equal.
    """
    for detector in _detectors(model):
        expected = detector.num_feature_levels
        num_outs = getattr(detector.neck, 'num_outs', None)
        if isinstance(num_outs, int) and num_outs != expected:
            raise ValueError(_message(f'num_outs={num_outs} in the neck',
                                      expected))
        for part in ('encoder', 'decoder'):
            for layer in getattr(detector, part).modules():
                levels = getattr(layer, 'num_levels', expected)
                if hasattr(layer, 'sampling_offsets') and levels != expected:
                    raise ValueError(_message(
                        f'num_levels={levels} in the attention of the {part}',
                        expected))


def watch_levels(model: nn.Module) -> None:
    """Compare the numbers, and count the neck's maps in each forward pass.

    Not every neck has ``num_outs``. Calling this again is harmless.

    Raises:
        ValueError: As :func:`check_levels`. Later forward passes raise it if
            the number of maps differs.
    """
    check_levels(model)
    for detector in _detectors(model):
        expected = detector.num_feature_levels
        counters = [hook for hook in detector.neck._forward_hooks.values()
                    if isinstance(hook, _MapCount)]
        if counters:
            counters[0].expected = expected
        else:
            detector.neck.register_forward_hook(_MapCount(expected))


class _MapCount:
    """Forward hook that can be pickled and copied with its neck."""

    def __init__(self, expected: int) -> None:
        self.expected = expected

    def __call__(self, neck: nn.Module, inputs: tuple,
                 maps: Sequence[Tensor]) -> None:
        check_maps(maps, self.expected)


def check_maps(maps: Sequence[Tensor], num_feature_levels: int) -> None:
    """Require one map per level.

    Raises:
        ValueError: The numbers differ.
    """
    if len(maps) != num_feature_levels:
        raise ValueError(
            _message(f'{len(maps)} maps of the neck', num_feature_levels))


def _detectors(model: nn.Module) -> Iterator[nn.Module]:
    """Find the detectors of the Deformable DETR family in a model."""
    names = ('num_feature_levels', 'neck', 'encoder', 'decoder')
    for module in model.modules():
        if all(hasattr(module, name) for name in names):
            yield module


def _message(given: str, expected: int) -> str:
    return ("num_outs of the neck, the detector's num_feature_levels and "
            'num_levels of its attention (self_attn_cfg of the encoder, '
            'cross_attn_cfg of the decoder) must be one number, got '
            f'{given} and num_feature_levels={expected}')
