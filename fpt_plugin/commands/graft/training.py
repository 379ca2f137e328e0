"""Set how a grafted model is trained, in its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import Config, ConfigDict

from ...engine.graft_optim_wrapper import (
    GraftOptimWrapperConstructor,
    check_lr_mult,
)
from .sites import type_name

# Schedules that give all parameters the same learning rate.
_ABSOLUTE = 'OneCycle'


def set_training(cfg: Config,
                 paths: Sequence[tuple],
                 kinds: Sequence[str],
                 train_neck_only: bool = False,
                 lr_mult: float | None = None,
                 load_from: str | None = None) -> None:
    """Set the training options of a config that has its grafts already.

    Args:
        cfg: The config, changed in place.
        paths: Paths of the grafted detectors in ``model``.
        kinds: The new modules, as GraftOptimWrapperConstructor names them.
        train_neck_only: Whether to freeze all modules that are not grafted.
        lr_mult: Factor of the learning rate of the new modules.
        load_from: Weights to start from.

    Raises:
        TypeError: ``lr_mult`` is no number.
        ValueError: ``lr_mult`` is not above zero, or the optimizer or schedule
            does not support it; or ``train_neck_only`` would freeze the random
            weights of a new backbone.
    """
    if lr_mult is not None:
        _set_lr_mult(cfg, kinds, lr_mult)
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


def _set_lr_mult(cfg: Config, kinds: Sequence[str], lr_mult: float) -> None:
    lr_mult = check_lr_mult(lr_mult)
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, Mapping):
        raise ValueError('lr_mult needs a config with an optim_wrapper, got '
                         f'optim_wrapper={wrapper!r}')
    for schedule in _schedules(cfg.get('param_scheduler')):
        if type_name(schedule).rpartition('.')[2].startswith(_ABSOLUTE):
            raise ValueError(
                f'lr_mult has no effect under {type_name(schedule)}, which '
                'gives all parameters the rate eta_max: graft without lr_mult, '
                'or use another schedule')
    graft = dict(lr_mult=lr_mult, kinds=list(kinds))
    # Keep the settings of an earlier graft.
    graft.update((key, wrapper[key]) for key in ('constructor', 'graft')
                 if key in wrapper)
    wrapper['constructor'] = GraftOptimWrapperConstructor.__name__
    wrapper['graft'] = ConfigDict(graft)


def _schedules(cfg: object) -> list[Mapping]:
    """Return the schedules of one optimizer, or of several optimizers by name."""
    if isinstance(cfg, Mapping):
        return [cfg] if 'type' in cfg else [
            schedule for value in cfg.values() for schedule in _schedules(value)]
    return list(cfg or ())


def _train_neck_only(cfg: Config, paths: Sequence[tuple]) -> None:
    for node in _nodes(cfg, paths):
        if node['backbone'].get('type') == 'LambdaResNet':
            raise ValueError('train_neck_only would leave the new layers of a '
                             'LambdaResNet random: train it as a whole')
    hooks = list(cfg.get('custom_hooks') or [])
    cfg.custom_hooks = [*hooks, ConfigDict(type='TrainGraftOnlyHook')]
    # DistributedDataParallel would wait for gradients of frozen parameters.
    cfg.find_unused_parameters = True
    if isinstance(cfg.get('model_wrapper_cfg'), Mapping):
        cfg.model_wrapper_cfg.find_unused_parameters = True
