"""How a grafted model is to be trained, written into its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import Config, ConfigDict

from ..complexity.command import BRANCHES
from .neck import holds_fpt

# Where the modules are that lambda grafts add, in the names of parameters: the
# plugins of a ResNet; the layers and the stem of a LambdaResNet.
_PLUGIN = ('lambda_layer', )
_LAMBDA_RESNET = ('backbone.stem', 'conv2.qkv', 'conv2.norm_q', 'conv2.norm_v',
                  'conv2.embedding')
_PARAMWISE = (None, 'DefaultOptimWrapperConstructor')


def set_training(cfg: Config,
                 paths: Sequence[tuple],
                 train_neck_only: bool = False,
                 lr_mult: float | None = None,
                 load_from: str | None = None) -> None:
    """Change a config that has its grafts already.

    Args:
        cfg: It is changed.
        paths: Where in ``model`` the grafted detectors are.
        train_neck_only: Whether all else stays as it is.
        lr_mult: Factor of the learning rate of what is new.
        load_from: Weights to start from.

    Raises:
        TypeError: ``lr_mult`` is no number.
        ValueError: It is not above zero, or the config's optimiser takes none;
            or everything in the new backbone would stay random.
    """
    if lr_mult is not None:
        _set_lr_mult(cfg, paths, lr_mult)
    if train_neck_only:
        _train_neck_only(cfg, paths)
    if load_from is not None:
        cfg.load_from = str(load_from)


def _nodes(cfg: Config, paths: Sequence[tuple]) -> list[Mapping]:
    nodes = []
    for path in paths:
        node = cfg.model
        for key in path:
            node = node[key]
        nodes.append(node)
    return nodes


def _new_keys(cfg: Config, paths: Sequence[tuple]) -> list[str]:
    """Parts of the names of the new parameters, no two of other ones."""
    keys = []
    for node in _nodes(cfg, paths):
        neck = node.get('neck')
        if holds_fpt(neck):
            place = f'neck.{len(neck) - 1}' if isinstance(neck, list) else 'neck'
            keys += [f'{place}.{branch}' for branch in BRANCHES
                     if branch != 'drop_blocks']
        backbone = node['backbone']
        if backbone.get('type') == 'LambdaResNet':
            keys += _LAMBDA_RESNET
        elif any((plugin.get('cfg') or {}).get('type') == 'LambdaLayer'
                 for plugin in backbone.get('plugins') or ()):
            keys += _PLUGIN
    return list(dict.fromkeys(keys))


def _set_lr_mult(cfg: Config, paths: Sequence[tuple], lr_mult: float) -> None:
    if isinstance(lr_mult, bool) or not isinstance(lr_mult, (int, float)):
        raise TypeError(f'lr_mult must be a number, got {lr_mult!r}')
    if not 0 < lr_mult < float('inf'):
        raise ValueError(f'lr_mult must be above 0, got {lr_mult}')
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, Mapping):
        raise ValueError('lr_mult needs a config with an optim_wrapper, got '
                         f'optim_wrapper={wrapper!r}')
    constructor = wrapper.get('constructor')
    if constructor not in _PARAMWISE:
        raise ValueError(
            'lr_mult is written as custom_keys of paramwise_cfg, which '
            f'constructor={constructor!r} of the optim_wrapper does not read: '
            'graft without lr_mult')
    paramwise = dict(wrapper.get('paramwise_cfg') or {})
    keys = dict(paramwise.get('custom_keys') or {})
    keys.update((key, dict(lr_mult=float(lr_mult)))
                for key in _new_keys(cfg, paths))
    wrapper['paramwise_cfg'] = ConfigDict(paramwise, custom_keys=keys)


def _train_neck_only(cfg: Config, paths: Sequence[tuple]) -> None:
    for node in _nodes(cfg, paths):
        if node['backbone'].get('type') == 'LambdaResNet':
            raise ValueError('train_neck_only would leave the new layers of a '
                             'LambdaResNet random: train it as a whole')
    hooks = list(cfg.get('custom_hooks') or [])
    cfg.custom_hooks = [*hooks, ConfigDict(type='TrainGraftOnlyHook')]
    # Several processes: what does not learn would be waited for.
    cfg.find_unused_parameters = True
    if isinstance(cfg.get('model_wrapper_cfg'), Mapping):
        cfg.model_wrapper_cfg.find_unused_parameters = True
