"""The factor of a graft's learning rate, with other rules of the config."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import LinearLR, OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from torch import nn

from fpt_plugin import FPT, LambdaLayer, LambdaResNet
from fpt_plugin.engine.graft_optim_wrapper import GraftOptimWrapperConstructor

CONSTRUCTOR = 'GraftOptimWrapperConstructor'
SGD = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)


class Net(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3)
        self.plugin = LambdaLayer(8, 8, residual=True, context_size=3)
        self.neck = FPT([8, 8], 8, num_outs=2,
                        pyramid=dict(type='BottomUpPyramid'))


def settings(model: nn.Module, wrapper: OptimWrapper) -> dict[str, dict]:
    """Return the options of each parameter; each must be in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        options = {k: v for k, v in group.items()
                   if k not in ('params', 'param_names')}
        own = [names[id(p)] for p in group['params']]
        assert group.get('param_names', own) == own
        assert not set(own) & set(found)
        found.update(dict.fromkeys(own, options))
    return found


def check(model: nn.Module, cfg: dict, is_new, lr_mult: float = 7.,
          **graft) -> OptimWrapper:
    """Compare all options with and without a factor."""
    base = cfg.get('constructor')
    if base:
        graft['constructor'] = base
    plain = settings(model, build_optim_wrapper(model, cfg))
    wrapper = build_optim_wrapper(model, dict(
        cfg, constructor=CONSTRUCTOR, graft=dict(lr_mult=lr_mult, **graft)))
    found = settings(model, wrapper)
    assert found.keys() == plain.keys()
    assert 0 < sum(map(is_new, found)) < len(found)
    for name, options in found.items():
        factor = lr_mult if is_new(name) else 1.
        assert options == {**plain[name], 'lr': plain[name]['lr'] * factor}, name
    return wrapper


def in_branches(name: str) -> bool:
    return name.startswith('neck.') and not name.startswith('neck.pyramid.')


def in_grafts(name: str) -> bool:
    return in_branches(name) or name.startswith('plugin.')


RULES = {
    'none': {},
    'an empty dict': dict(paramwise_cfg={}),
    'norms and biases': dict(paramwise_cfg=dict(
        norm_decay_mult=0., bias_lr_mult=2., bias_decay_mult=0.)),
    'flat': dict(paramwise_cfg=dict(flat_decay_mult=0., bypass_duplicate=True)),
    'custom keys': dict(paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys={'neck': dict(lr_mult=0.1, decay_mult=0.5),
                     'neck.fusions.0': dict(lr_mult=3.)})),
}


@pytest.mark.parametrize('rules', RULES)
@pytest.mark.parametrize('optimizer', [
    SGD, dict(type='AdamW', lr=1e-3, weight_decay=0.05, betas=(0.9, 0.99)),
    dict(type='Adam', lr=1e-3, weight_decay=0.)])
def test_only_the_rate_of_grafts_changes(optimizer, rules):
    cfg = dict(type='OptimWrapper', optimizer=optimizer, **RULES[rules])
    check(Net(), cfg, in_grafts)


def of_lambda_resnet(name: str) -> bool:
    return name.startswith('backbone.stem') or '.conv2.qkv' in name \
        or '.conv2.norm_' in name or name.endswith('.conv2.embedding')


@pytest.mark.parametrize('kind, is_new', [
    ('FPT', in_branches), ('LambdaLayer', lambda n: n.startswith('plugin.')),
    ('LambdaResNet', of_lambda_resnet)])
def test_one_kind_of_several(kind, is_new):
    model = Net()
    if kind == 'LambdaResNet':
        model.backbone = LambdaResNet(50, num_stages=3, out_indices=(2, ))
    check(model, dict(optimizer=SGD), is_new, kinds=[kind])
    # Frozen parameters stay in their group.
    model.backbone.requires_grad_(False)
    wrapper = check(model, dict(optimizer=SGD), is_new, kinds=[kind])
    assert len(wrapper.optimizer.param_groups) == 2


def test_layer_decay_of_mmseg():
    """It has groups of many parameters with their names."""
    init_default_scope('mmseg')
    model = Net()
    model.backbone = MODELS.build(dict(
        type='mmseg.BEiT', img_size=(32, 32), embed_dims=16, num_layers=4,
        num_heads=2, out_indices=(1, 3)))
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        constructor='LearningRateDecayOptimizerConstructor',
        paramwise_cfg=dict(num_layers=4, decay_rate=0.9,
                           decay_type='layer_wise_vit'))
    wrapper = check(model, cfg, in_grafts)
    assert any('param_names' in g for g in wrapper.optimizer.param_groups)
    # This constructor removes a key from its config.
    cfg.update(constructor='LayerDecayOptimizerConstructor',
               paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.9))
    check(model, cfg, in_grafts)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoOptimizers:
    """One for the backbone, one for the rest."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.names = sorted(optim_wrapper_cfg)

    def __call__(self, model):
        rest = [p for n, p in model.named_parameters() if 'backbone' not in n]
        one, two = self.names
        return OptimWrapperDict(**{
            one: OptimWrapper(torch.optim.SGD(model.backbone.parameters(), 0.1)),
            two: OptimWrapper(torch.optim.AdamW(rest, 0.01))})


def test_several_optimizers():
    model = Net()
    built = build_optim_wrapper(model, dict(
        constructor=CONSTRUCTOR, body={}, rest={},
        graft=dict(lr_mult=3., constructor='TwoOptimizers')))
    assert list(built.keys()) == ['body', 'rest']
    assert {o['lr'] for o in settings(model, built['body']).values()} == {0.1}
    for name, options in settings(model, built['rest']).items():
        assert options['lr'] == pytest.approx(0.03 if in_grafts(name) else 0.01)


def test_schedules_keep_the_factor_and_states_resume():
    """The logged rate is that of the plain model."""
    model = Net()
    cfg = dict(optimizer=SGD, constructor=CONSTRUCTOR, graft=dict(lr_mult=4.))
    wrapper = build_optim_wrapper(model, cfg)
    schedule = LinearLR(wrapper, start_factor=0.1, end=10, by_epoch=False)
    for _ in range(3):
        wrapper.step()
        schedule.step()
    rates = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert rates[1] == pytest.approx(4 * rates[0])
    assert rates[0] == pytest.approx(0.004)
    assert wrapper.get_lr()['lr'][0] == rates[0]
    again = build_optim_wrapper(model, cfg)
    again.load_state_dict(wrapper.state_dict())
    assert settings(model, again) == settings(model, wrapper)


@pytest.mark.parametrize('graft, error, word', [
    (None, TypeError, 'graft'),
    ({}, TypeError, 'lr_mult'),
    (dict(lr_mult=2., rate=3), TypeError, 'rate'),
    (dict(lr_mult='2'), TypeError, "'2'"),
    (dict(lr_mult=-1), ValueError, '-1'),
    (dict(lr_mult=2., kinds='FPT'), ValueError, 'FPT'),
    (dict(lr_mult=2., kinds=['fpt']), ValueError, 'fpt'),
])
def test_bad_settings(graft, error, word):
    cfg = dict(optimizer=SGD)
    if graft is not None:
        cfg['graft'] = graft
    with pytest.raises(error, match=word):
        GraftOptimWrapperConstructor(cfg)


def without_rate(model: nn.Module) -> OptimWrapper:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]['lr'] = None
    return OptimWrapper(optimizer)


@pytest.mark.parametrize('model, optimizer, base, words', [
    (nn.Linear(1, 1), SGD, None, 'FPT or a gated LambdaLayer'),
    (Net(), dict(type='LBFGS', lr=0.1), None, 'LBFGS'),
    (Net(), SGD, without_rate, 'lr=None'),
])
def test_models_and_optimizers_without_a_factor(model, optimizer, base, words):
    made = GraftOptimWrapperConstructor(
        dict(optimizer=optimizer, graft=dict(lr_mult=2.)))
    made.base = base or made.base
    with pytest.raises(ValueError, match=words):
        made(model)
