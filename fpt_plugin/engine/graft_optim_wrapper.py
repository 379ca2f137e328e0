"""Give grafts their own learning rate and keep all other rules of the config."""

from __future__ import annotations

from collections.abc import Collection

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.optim import Optimizer

from ..openmmlab.registry import register
from .grafts import KINDS, NEUTRAL, new_parameters

# Key of a group's parameter names, in mmdet, mmseg and torch.
_NAMES = 'param_names'
# Optimizers whose groups cannot change after construction.
_FIXED_GROUPS = ('LBFGS', 'ZeroRedundancyOptimizer')


@register(OPTIM_WRAPPER_CONSTRUCTORS)
class GraftOptimWrapperConstructor:
    """Multiply the learning rate of grafts, and change nothing else.

    The config's own constructor builds the optimizer with its own
    ``paramwise_cfg``; then the rate of the new parameters is multiplied.
    (``custom_keys`` would switch off the config's rules for norms and biases.)
    ::

        optim_wrapper = dict(
            constructor='GraftOptimWrapperConstructor',
            graft=dict(lr_mult=10.))

    A schedule that sets rates instead of factors, such as ``eta_min``, sets the
    same rate for grafts.

    Args:
        optim_wrapper_cfg: The config for mmengine's constructors, with a dict
            ``graft`` of ``lr_mult``, the factor; ``kinds``, some of ``'FPT'``,
            ``'LambdaLayer'`` and ``'LambdaResNet'`` (default: the first two);
            ``constructor``, which builds the optimizer (default: mmengine's);
            and, if that is this class again, its own ``graft``.
        paramwise_cfg: The argument of that constructor.

    Raises:
        TypeError: ``graft`` is no such dict, or the factor is no number.
        ValueError: The factor is not above 0, or a kind is unknown.
    """

    def __init__(self,
                 optim_wrapper_cfg: dict,
                 paramwise_cfg: dict | None = None) -> None:
        cfg = dict(optim_wrapper_cfg)
        graft = cfg.pop('graft', None)
        known = {'lr_mult', 'kinds', 'constructor', 'graft'}
        if not isinstance(graft, dict) or 'lr_mult' not in graft \
                or not known.issuperset(graft):
            raise TypeError('optim_wrapper must have graft, a dict of lr_mult '
                            'and optionally kinds and constructor, got '
                            f'graft={graft!r}')
        self.lr_mult = check_lr_mult(graft['lr_mult'])
        self.kinds = graft.get('kinds', NEUTRAL)
        if isinstance(self.kinds, str) or not set(KINDS).issuperset(self.kinds):
            raise ValueError(f'kinds must be a list of some of {KINDS}, got '
                             f'{self.kinds!r}')
        if 'graft' in graft:
            cfg['graft'] = graft['graft']
        self.base = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type=graft.get('constructor', 'DefaultOptimWrapperConstructor'),
                optim_wrapper_cfg=type(optim_wrapper_cfg)(cfg),
                paramwise_cfg=paramwise_cfg))

    def __call__(self, model: nn.Module) -> OptimWrapper | OptimWrapperDict:
        """Build the optimizers of a model.

        Raises:
            ValueError: The model has none of the grafts, FSDP has flattened
                their parameters together with others, or an optimizer has no
                learning rate or does not support several.
        """
        new = {id(p) for p in new_parameters(
            model, self.kinds, type(self).__name__)}
        built = self.base(model)
        wrappers = built.values() if isinstance(
            built, OptimWrapperDict) else [built]
        for wrapper in wrappers:
            _multiply(wrapper.optimizer, new, self.lr_mult)
        return built


def check_lr_mult(lr_mult: float) -> float:
    """Require a positive number as the factor of a learning rate.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0.
    """
    if isinstance(lr_mult, bool) or not isinstance(lr_mult, (int, float)):
        raise TypeError(f'lr_mult must be a number, got {lr_mult!r}')
    if not 0 < lr_mult < float('inf'):
        raise ValueError(f'lr_mult must be above 0, got {lr_mult}')
    return float(lr_mult)


def _multiply(optimizer: Optimizer, new: Collection[int], lr_mult: float) -> None:
    """Multiply the rates of new parameters; split groups that have both kinds."""
    added = []
    for group in optimizer.param_groups:
        is_new = [id(p) in new for p in group['params']]
        if not any(is_new):
            continue
        if group.get('lr') is None:
            raise ValueError('lr_mult needs a learning rate to multiply, got '
                             f'{type(optimizer).__name__} with lr=None')
        target = group
        if not all(is_new):
            target = _split(optimizer, group, is_new)
            added.append(target)
        for name in ('lr', 'initial_lr'):
            if name in target:
                target[name] = target[name] * lr_mult
    # In place: other objects may hold the same list.
    optimizer.param_groups.extend(added)


def _split(optimizer: Optimizer, group: dict, is_new: list[bool]) -> dict:
    """Move the new parameters of a group to a group with the same options."""
    kinds = {cls.__name__ for cls in type(optimizer).__mro__}
    if not kinds.isdisjoint(_FIXED_GROUPS):
        raise ValueError(
            f'lr_mult must split a parameter group, which '
            f'{type(optimizer).__name__} does not support: give each parameter '
            'its own group by paramwise_cfg=dict(custom_keys=dict()), or leave '
            'lr_mult out')
    taken = dict(group)
    for name in ('params', _NAMES):
        if name in group:
            items = group[name]
            taken[name] = [x for x, yes in zip(items, is_new) if yes]
            group[name] = [x for x, yes in zip(items, is_new) if not yes]
    return taken
