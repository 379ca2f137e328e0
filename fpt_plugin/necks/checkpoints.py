"""Checkpoints of the wrapped pyramid: whose key is whose."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from torch import Tensor, nn

from ..io.checkpoints import some
from ..openmmlab.list_necks import adopt_plain_neck

# Children by which the libraries' necks can be told apart in a state dict, the
# most particular ones first. A neck is named when it has all of them.
_NECK_CHILDREN = (
    ('PAFPN', {'downsample_convs', 'pafpn_convs', 'fpn_convs'}),
    ('RFP', {'rfp_modules', 'fpn_convs'}),
    ('FPN_CARAFE', {'upsample_modules', 'lateral_convs'}),
    ('NASFPN', {'fpn_stages', 'lateral_convs'}),
    ('NASFCOS_FPN', {'adapt_convs', 'fpn'}),
    ('FPG', {'fpn_transitions', 'output_transition'}),
    ('HRFPN', {'reduction_conv', 'fpn_convs'}),
    ('YOLOXPAFPN or CSPNeXtPAFPN', {'top_down_blocks', 'bottom_up_blocks'}),
    ('DyHead', {'dyhead_blocks'}),
    ('DilatedEncoder', {'dilated_encoder_blocks'}),
    ('JPU', {'dilation_layers', 'conv_layers'}),
    ('MultiLevelNeck', {'lateral_convs', 'convs'}),
    ('FPN', {'lateral_convs', 'fpn_convs'}),
    ('BottomUpPyramid', {'lateral_convs'}),
    ('ChannelMapper', {'convs'}),
    ('SSDNeck', {'extra_layers'}),
    ('BFP', {'refine'}),
)


def adopt_pyramid_keys(state_dict: dict[str, Tensor], prefix: str,
                       own_children: tuple[str, ...], pyramid: nn.Module) -> None:
    """Rename the keys of a plain pyramid to those of the wrapped one.

    What is not a child of the neck is the pyramid's: ``neck.lateral_convs.0``
    becomes ``neck.pyramid.lateral_convs.0``. A key that is there under its new
    name already is left alone. What the pyramid does not have, or has and the
    checkpoint lacks, is warned about together with the likely neck. What is in
    another FPT inside the pyramid is left to that one.

    Args:
        state_dict: Changed in place.
        prefix: The neck's prefix with its final dot, or ''.
        own_children: Names of the neck's children, ``'pyramid'`` included.
        pyramid: The wrapped pyramid.
    """
    own = tuple(f'{prefix}{child}.' for child in own_children)
    foreign = [
        key for key in state_dict
        if key.startswith(prefix) and not key.startswith(own)
    ]
    inner = f'{prefix}pyramid.'
    for key in foreign:
        renamed = inner + key[len(prefix):]
        if renamed not in state_dict:
            state_dict[renamed] = state_dict.pop(key)
    adopt_plain_neck(state_dict, inner, pyramid)
    given = {k[len(inner):] for k in state_dict if k.startswith(inner)}
    if given:
        _warn_of_another_neck(given, pyramid)


def _warn_of_another_neck(given: set[str], pyramid: nn.Module) -> None:
    inner = tuple(f'{name}.' if name else '' for name, module in
                  pyramid.named_modules() if hasattr(module, 'OWN_CHILDREN'))
    given, expected = (
        {key for key in keys if not key.startswith(inner)}
        for keys in (given, pyramid.state_dict()))
    unexpected = sorted(given - expected)
    missing = sorted(key for key in expected - given
                     if not key.endswith('num_batches_tracked'))
    if not unexpected and not missing:
        return
    name = type(pyramid).__name__
    likely = _likely_neck(given)
    parts = [f'The checkpoint does not fit the wrapped pyramid {name}:']
    if unexpected:
        parts.append(f'{len(unexpected)} keys have no place in it '
                     f'({some(unexpected)});')
    if missing:
        parts.append(f'{len(missing)} of its keys are missing '
                     f'({some(missing)});')
    if likely and likely != name:
        parts.append(f'its neck was probably {likely}: write '
                     f"pyramid=dict(type='{likely.split()[0]}').")
    else:
        parts.append('its neck was another one, or had other arguments.')
    print_log(' '.join(parts), logger='current', level=logging.WARNING)


def _likely_neck(keys: set[str]) -> str | None:
    children = {key.split('.')[0] for key in keys}
    if children and all(child.isdigit() for child in children):
        return None  # a list of necks
    for name, particular in _NECK_CHILDREN:
        if particular <= children:
            return name
    return None
