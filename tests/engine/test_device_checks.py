"""Configs that need CUDA are rejected on other devices."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper

from fpt_plugin.engine import device_checks
from fpt_plugin.engine.device_checks import check_amp, check_sync_bn


def on(device, monkeypatch):
    monkeypatch.setattr(device_checks, 'get_device', lambda: device)


def amp(wrapper='AmpOptimWrapper'):
    return Config(dict(optim_wrapper=dict(type=wrapper, loss_scale='dynamic')))


@pytest.mark.parametrize('device', ['cpu', 'mps'])
@pytest.mark.parametrize('flag, words', [
    (True, '--amp needs a CUDA device, got {!r}.* leave the flag out'),
    (False, "optim_wrapper.type='AmpOptimWrapper' of the config needs a CUDA "
     "device, got {!r}.* without loss_scale")
])
def test_amp_is_rejected_without_a_scaler(device, flag, words, monkeypatch):
    on(device, monkeypatch)
    for wrapper in ('AmpOptimWrapper', AmpOptimWrapper):
        with pytest.raises(ValueError, match=words.format(device)):
            check_amp(amp(wrapper), flag)


def model(launcher='pytorch', **more):
    sync, plain = dict(type='SyncBN', requires_grad=True), dict(type='BN')
    return Config(dict(
        launcher=launcher,
        model=dict(
            backbone=dict(norm_cfg=sync),
            neck=[dict(norm_cfg=plain), dict(pyramid=dict(norm_cfg=sync))]),
        **more))


def test_sync_bn_is_rejected_with_its_keys(monkeypatch):
    on('cpu', monkeypatch)
    with pytest.raises(ValueError, match='one process') as caught:
        check_sync_bn(model())
    options = str(caught.value).partition('--cfg-options ')[2].split()
    assert options == [
        'model.backbone.norm_cfg.type=BN',
        'model.neck.1.pyramid.norm_cfg.type=BN'
    ]
    # With the options of the message it passes.
    cfg = model()
    cfg.merge_from_dict(dict(option.split('=') for option in options))
    check_sync_bn(cfg)
    cfg.sync_bn = 'torch'
    with pytest.raises(ValueError, match='sync_bn=None'):
        check_sync_bn(cfg)


def test_other_devices_and_settings(monkeypatch):
    on('cuda', monkeypatch)
    check_amp(amp(), True)
    check_sync_bn(model())
    on('cpu', monkeypatch)
    check_amp(amp('OptimWrapper'), False)
    check_amp(Config(), False)
    check_sync_bn(model('none'))
    check_sync_bn(Config(dict(model=dict(backbone=dict(type='ResNet')))))
