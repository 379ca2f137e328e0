"""Load checkpoints of the wrapped pyramid and check those of FPT."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from torch import Tensor, nn

from ..io.checkpoints import some
from ..openmmlab.list_necks import adopt_plain_neck
from .branches import level_pairs
from .presets import BRANCHES, PRESETS

# Child modules that identify the libraries' necks in a state dict, the most
# specific sets first. A neck matches if the state dict has all of its children.
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

    A key that belongs to no child of the neck belongs to the pyramid:
    ``neck.lateral_convs.0`` becomes ``neck.pyramid.lateral_convs.0``. A key
    whose new name already exists is not renamed. Unexpected and missing keys
    of the pyramid give a warning that names the likely neck. An FPT inside the
    pyramid handles its own keys.

    Args:
        state_dict: Changed in place.
        prefix: The neck's prefix with its final dot, or ''.
        own_children: Names of the neck's children, including ``'pyramid'``.
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
        parts.append('its neck had another type or other arguments.')
    print_log(' '.join(parts), logger='current', level=logging.WARNING)


def _likely_neck(keys: set[str]) -> str | None:
    children = {key.split('.')[0] for key in keys}
    if children and all(child.isdigit() for child in children):
        return None  # a list of necks
    for name, particular in _NECK_CHILDREN:
        if particular <= children:
            return name
    return None


class BranchMismatch(RuntimeError, ValueError):
    """A checkpoint has other FPT branches than the neck.

    torch raises RuntimeError for a state dict that does not fit; commands
    report a ValueError in one line.
    """


def check_own_keys(state_dict: dict[str, Tensor], prefix: str,
                   neck: nn.Module) -> None:
    """Reject branches of another preset, which torch would drop silently.

    Missing branches are accepted: a neck may be trained further with more
    branches than its checkpoint has.

    Args:
        state_dict: The state dict to load.
        prefix: The neck's prefix with its final dot, or ''.
        neck: An FPT.

    Raises:
        BranchMismatch: The checkpoint has layers that the neck does not have,
            or layers of another width.
    """
    own = tuple(f'{child}.' for child in neck.OWN_CHILDREN[1:])
    given = {
        key[len(prefix):]: tuple(value.shape)
        for key, value in state_dict.items()
        if key.startswith(prefix) and key[len(prefix):].startswith(own)
        and isinstance(value, Tensor)
    }
    expected = {
        key: tuple(value.shape)
        for named in (neck.named_parameters(), neck.named_buffers())
        for key, value in named
    }
    unexpected = [key for key in given if key not in expected]
    reshaped = [key for key in given
                if key in expected and given[key] != expected[key]]
    if not unexpected and not reshaped:
        return
    parts = ['The checkpoint has other FPT branches than this neck:']
    if unexpected:
        parts.append(f'{len(unexpected)} keys have no place in it '
                     f'({some(sorted(unexpected))});')
    if reshaped:
        key = min(reshaped)
        parts.append(f'{len(reshaped)} have other shapes ({key} is {given[key]} '
                     f'in the checkpoint and {expected[key]} here);')
    fitting = _fitting_preset(given, neck)
    if fitting == neck.preset:
        fitting = None  # other arguments differ
    parts.append(
        f"write preset='{fitting}' into the neck's config." if fitting else
        'the neck needs the arguments that it was trained with.')
    if fitting == 'full':
        parts.append("Version 0.1.0 called the preset 'full' the default.")
    raise BranchMismatch(' '.join(parts))


def _fitting_preset(given: dict[str, tuple[int, ...]],
                    neck: nn.Module) -> str | None:
    """Return the preset that fits the branches and width of a checkpoint.

    A preset with exactly these branches comes first. Otherwise the levels and
    width decide, since a config may add or remove branches.
    """
    layers = {tuple(key.split('.')[:2]) for key in given
              if not key.startswith(('fusions.', 'drop_blocks.'))}
    widths = {shape[0] for key, shape in given.items()
              if key.endswith('.value.weight')}
    kinds = {kind for kind, _ in layers}
    same_levels = None
    for name, preset in PRESETS.items():
        firsts = preset.first_levels(
            neck.num_levels, getattr(neck.pyramid, 'one_size', False))
        pairs = {(f'{branch}s', f'{level}_{source}')
                 for branch in BRANCHES for level, source in
                 level_pairs(branch, firsts[branch], neck.num_levels)}
        # 4 is the largest default number of mixture parts of FPT's layers.
        if widths != {preset.embed_channels(neck.out_channels, 4)}:
            continue
        if layers == {pair for pair in pairs if pair[0] in kinds}:
            if kinds == {f'{branch}s' for branch in preset.branches}:
                return name
            same_levels = same_levels or name
    return same_levels
