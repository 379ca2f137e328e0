"""Replace a ResNet by a LambdaResNet, or add lambda layers to it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from mmengine.registry import MODELS
from torch import Tensor

from ...backbones import LambdaResNet
from ...io.checkpoints import Weights
from ...openmmlab.models import describe
from ...openmmlab.registry import lookup
from ..convert_weights.command import converted, shapes_of, torchvision_resnet
from ..convert_weights.key_maps import Conversion
from ..convert_weights.nets import RESNET_DEPTHS
from .sites import Refusal, Site, Unbuildable, probe, type_name

_RESNETS = ('ResNet', 'ResNetV1c', 'ResNetV1d')
DEPTHS = tuple(RESNET_DEPTHS.values())

# Arguments of the libraries' ResNet that are not passed on: a LambdaResNet has its
# own stem and shortcuts, and its new layers must be trained.
_REPLACED = ('pretrained', 'init_cfg', 'frozen_stages', 'norm_eval',
             'norm_cfg', 'deep_stem', 'avg_down', 'stem_channels')
# Arguments that may only have these values.
_REQUIRED = dict(
    style=('pytorch', ), base_channels=(64, ), dcn=(None, ), plugins=(None, ),
    multi_grid=(None, ))
# Has no effect without dcn, which is refused.
_IGNORED = ('stage_with_dcn', )

# A branch in every block of C4 and C5. Trained ResNets often keep batch norms in
# evaluation mode, so the new layers use group norms.
_FIRST_LAMBDA_STAGE = 2
_PLUGIN = dict(
    type='LambdaLayer', residual=True, norm_cfg=dict(type='GN', num_groups=4))


def replace_backbone(site: Site, name: str) -> dict:
    """Return the config of the LambdaResNet that replaces the ResNet of a site.

    Args:
        site: A site whose backbone is a ResNet of mmdet or mmseg.
        name: ``'lambda-resnet50'`` and so on for the depths of the paper.

    Raises:
        ValueError: There is no such LambdaResNet.
        Refusal: The LambdaResNet cannot replace the backbone.
    """
    match = re.fullmatch(r'lambda-resnet-?(\d+)', str(name))
    if match is None or int(match[1]) not in DEPTHS:
        names = ', '.join(f'lambda-resnet{depth}' for depth in DEPTHS)
        raise ValueError(f'backbone must be one of {names}, got {name!r}')
    depth = int(match[1])
    old = site.cfg['backbone']
    kind = type_name(old).rpartition('.')[2]
    if kind not in _RESNETS or old.get('depth') != depth:
        raise Refusal(
            f'{name} replaces a ResNet of depth {depth} (of the types '
            f'{", ".join(_RESNETS)}), got {kind} of depth {old.get("depth")} in '
            f'{site.name}')
    kept = {}
    for key, value in old.items():
        if key in _REQUIRED and value not in _REQUIRED[key]:
            raise Refusal(
                f'{name} can replace a ResNet with {key}='
                f'{_REQUIRED[key][0]!r}, got {key}={value!r} in '
                f'{site.name}.backbone')
        if key in _REPLACED or key in _REQUIRED or key in _IGNORED:
            continue
        if key not in inspect.signature(LambdaResNet).parameters:
            if key in ('type', '_scope_'):
                continue
            raise Refusal(f'LambdaResNet takes no {key}, got {key}={value!r} in '
                          f'{site.name}.backbone')
        kept[key] = value
    norm = dict(old.get('norm_cfg') or dict(type='BN'))
    if norm['type'] in ('BN', 'SyncBN'):
        # The new layers are trained with norms over the images of all GPUs.
        norm.update(type='SyncBN', requires_grad=True)
    return dict(type='LambdaResNet', **kept, norm_cfg=norm, norm_eval=False)


def add_lambda_plugins(site: Site) -> dict:
    """Return the config of a site's backbone with gated lambda layers in C4 and C5.

    Raises:
        Refusal: The backbone does not support them.
        Unbuildable: The backbone does not build or run.
    """
    old = site.cfg['backbone']
    kind = type_name(old)
    with MODELS.switch_scope_and_registry(old.get('_scope_')
                                          or site.scope) as registry:
        cls = lookup(registry, old['type'])
    if not hasattr(cls, 'make_stage_plugins'):
        raise Refusal(f'lambda layers go into a ResNet that takes plugins, got '
                      f'{kind} in {site.name}')
    if type(old.get('depth')) is int and old['depth'] < 50:
        raise Refusal(f'lambda layers go into bottleneck blocks, which {kind} '
                      f'of depth {old["depth"]} in {site.name} does not have')
    stages = tuple(stage >= _FIRST_LAMBDA_STAGE
                   for stage in range(old.get('num_stages', 4)))
    if not any(stages):
        raise Refusal(f'lambda layers go into C4 and C5, and the backbone of '
                      f'{site.name} has {len(stages)} stages')
    new = dict(
        old,
        plugins=[
            *(old.get('plugins') or ()),
            dict(cfg=dict(_PLUGIN), stages=stages, position='after_conv2')
        ])
    # Without the neck, which is not relevant here.
    plain, grafted = (
        Site(site.path, dict(site.cfg, backbone=backbone, neck=None),
             site.scope) for backbone in (old, new))
    before = probe(plain)
    try:
        after = probe(grafted)
    except Unbuildable as error:
        raise Refusal(f'{kind} in {site.name} does not take lambda layers as '
                      f'plugins: {describe(error.__cause__)}') from error
    if after.outputs != before.outputs:
        raise Refusal(f'{kind} in {site.name} returns other maps with plugins')
    return new


def convert_backbones(
        state_dict: Mapping[str, Tensor],
        backbone: dict) -> tuple[dict[str, Tensor], dict[str, Conversion]]:
    """Convert the ResNet weights in a detector's checkpoint for LambdaResNets.

    Args:
        state_dict: Of a detector or segmentor, or of a wrapper of several; it
            is not changed.
        backbone: The config of the LambdaResNet.

    Returns:
        The new state dict, and the conversions by the prefix of each backbone.

    Raises:
        ValueError: It has no ResNet of that depth.
    """
    prefixes = [
        key[:-len('layer1.0.conv1.weight')] for key in state_dict
        if re.fullmatch(r'(.*\.)?backbone\.layer1\.0\.conv1\.weight', key)
    ]
    if not prefixes:
        some = ', '.join(list(state_dict)[:3])
        raise ValueError('the checkpoint has no backbone.layer1.0.conv1.weight, '
                         f'so no ResNet; it has {some}, ...')
    shapes = shapes_of(backbone)
    task = torchvision_resnet(backbone['depth'])
    new = dict(state_dict)
    conversions = {}
    for prefix in prefixes:
        inside = {key[len(prefix):]: new.pop(key) for key in list(new)
                  if key.startswith(prefix)}
        conversion = converted(task, Weights(inside), shapes)
        new.update((prefix + key, value)
                   for key, value in conversion.state_dict.items())
        conversions[prefix] = conversion
    return new, conversions
