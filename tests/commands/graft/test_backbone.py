"""Lambda layers added to a ResNet, and a LambdaResNet instead of a ResNet."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from helpers.graft_detectors import FPN, config, retinanet, write
from mmengine.config import Config

from fpt_plugin import LambdaLayer, LambdaResNet
from fpt_plugin.commands.graft import graft
from fpt_plugin.commands.graft.backbone import convert_backbones
from fpt_plugin.commands.graft.command import main, parser
from fpt_plugin.commands.graft.proof import compare, prove
from fpt_plugin.commands.graft.sites import Refusal
from fpt_plugin.commands.graft.weights import ZerosForRandom, randomise
from fpt_plugin.openmmlab.models import build_model

BOTTLENECKS = dict(
    type='ResNet', depth=50, base_channels=8, stem_channels=8,
    norm_cfg=dict(type='BN', requires_grad=True), style='pytorch')
WIDE = dict(FPN, in_channels=[32, 64, 128, 256])
RESNET = dict(
    type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3),
    frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False),
    norm_eval=True, style='pytorch',
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'))
FULL = dict(FPN, in_channels=[256, 512, 1024, 2048])


def detector(backbone: dict, neck: dict, **more) -> Config:
    model = retinanet(neck).model.to_dict()
    model.update(backbone=copy.deepcopy(backbone), **more)
    return config(model)


def test_plugins_are_identical_at_the_start():
    cfg = detector(BOTTLENECKS, WIDE)
    new = graft(cfg, lambda_plugins=True)
    assert new.model.neck == cfg.model.neck
    proof = prove(cfg, new)
    assert proof.identical and proof.heads_compared
    layers = {name for name, m in build_model(new).named_modules()
              if isinstance(m, LambdaLayer)}
    # 6 blocks of C4 and 3 of C5.
    assert len(layers) == 9
    assert {name.split('.')[1] for name in layers} == {'layer3', 'layer4'}
    # The proof finds an open gate.
    before, after = build_model(cfg), build_model(new)
    next(m for m in after.modules()
         if isinstance(m, LambdaLayer)).gate.data.fill_(1e-3)
    assert not compare(before, after).identical


@pytest.mark.parametrize('backbone, stages', [
    (dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
          out_indices=(0, 1, 2)), (False, False, True)),
    # Its other plugins are kept.
    (dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.25),
                        stages=(False, True, True, True), position='after_conv3')]),
     (False, False, True, True)),
    # mmdet's blocks remove fallback_on_stride from dcn.
    (dict(stage_with_dcn=(False, False, False, True), dcn=dict(
        type='DCN', deform_groups=1, fallback_on_stride=False)),
     (False, False, True, True))])
def test_plugins_and_fpt_together(backbone, stages):
    maps = backbone.get('num_stages', 4)
    cfg = detector(dict(BOTTLENECKS, **backbone),
                   dict(WIDE, in_channels=WIDE['in_channels'][:maps]))
    before = copy.deepcopy(cfg.to_dict())
    new = graft(cfg, 'FPT', lambda_plugins=True)
    assert cfg.to_dict() == before
    *others, plugin = new.to_dict()['model']['backbone'].pop('plugins')
    assert plugin['stages'] == stages and others == backbone.get('plugins', [])
    assert new.model.backbone.get('dcn') == cfg.model.backbone.get('dcn')
    assert new.model.neck.type == 'FPT'
    assert prove(cfg, new).identical


@pytest.mark.parametrize('backbone, words', [
    (dict(type='Res2Net', depth=50, base_channels=8, stem_channels=8,
          base_width=26, scales=4), 'Res2Net.*plugins.*in_channels'),
    (dict(type='ResNet', depth=18), 'bottleneck.*18'),
    (dict(type='HourglassNet'), 'plugins.*HourglassNet'),
    (dict(BOTTLENECKS, num_stages=2), '2 stages'),
    (dict(BOTTLENECKS, base_channels=1), 'ResNet.*num_groups'),
])
def test_refused_plugins(backbone, words):
    with pytest.raises(Refusal, match=words):
        graft(detector(backbone, WIDE), lambda_plugins=True)


def test_a_lambda_resnet_for_a_resnet():
    cfg = detector(RESNET, FULL)
    new = graft(cfg, backbone='lambda-resnet50')
    assert new.model.backbone == dict(
        type='LambdaResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False)
    assert new.model.neck == cfg.model.neck
    both = graft(cfg, 'FPT', backbone='lambda-resnet50')
    assert both.model.neck.type == 'FPT'
    with torch.device('meta'):
        model = build_model(both)
    assert isinstance(model.backbone, LambdaResNet)
    with pytest.raises(ValueError, match='random'):
        graft(cfg, backbone='lambda-resnet50', train_neck_only=True)


@pytest.mark.parametrize('change, words', [
    (dict(depth=101), 'depth 50.*101'),
    (dict(type='ResNeXt', groups=32), 'ResNeXt'),
    (dict(style='caffe'), "style='pytorch'.*caffe"),
    (dict(dcn=dict(type='DCN')), 'dcn'),
    (dict(plugins=[dict()]), 'plugins'),
    (dict(base_channels=32), 'base_channels'),
    (dict(multi_scale=3), 'multi_scale'),
])
def test_refused_backbones(change, words):
    cfg = detector(dict(RESNET, **change), FULL)
    with pytest.raises(Refusal, match=words):
        graft(cfg, backbone='lambda-resnet50')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return the paths of a detector's config and checkpoint."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = detector(RESNET, FULL)
    with ZerosForRandom():
        model = build_model(cfg)
    randomise(model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=12)),
               folder / 'old.pth')
    return write(cfg, folder / 'plain.py'), folder / 'old.pth'


def test_convolutions_are_kept(trained):
    old = torch.load(trained[1])['state_dict']
    backbone = graft(Config.fromfile(trained[0]),
                     backbone='lambda-resnet50').model.backbone.to_dict()
    new, conversions = convert_backbones(old, backbone)
    assert list(conversions) == ['backbone.']
    kept = conversions['backbone.'].sources
    assert torch.equal(new['backbone.layer2.0.downsample.1.weight'],
                       old['backbone.layer2.0.downsample.0.weight'])
    for key, source in kept.items():
        assert torch.equal(new[f'backbone.{key}'], old[f'backbone.{source}'])
    convolutions = [k for k, v in old.items()
                    if k.startswith('backbone.') and v.dim() == 4]
    # 3 lambda layers in C5, one in C4 and the 7x7 stem have other weights.
    assert len([k for k in kept if new[f'backbone.{k}'].dim() == 4]) \
        == len(convolutions) - 5
    for key, value in old.items():
        if not key.startswith('backbone.'):
            assert torch.equal(new[key], value)
    wrapped = {f'{part}.{k}': v for part in ('student', 'teacher')
               for k, v in old.items()}
    new, conversions = convert_backbones(wrapped, backbone)
    assert list(conversions) == ['student.backbone.', 'teacher.backbone.']
    assert 'teacher.backbone.layer1.0.conv2.weight' in new


def run(base, checkpoint, out, *flags):
    main(parser().parse_args([
        base, '--backbone', 'lambda-resnet50', '--checkpoint', str(checkpoint),
        '--write-checkpoint', '--out', str(out), '--no-costs', *flags]))


def test_the_command_converts_the_checkpoint(trained, tmp_path, capsys):
    out = tmp_path / 'new.py'
    run(*trained, out, '--cfg-options', 'model.bbox_head.num_classes=7')
    shown = capsys.readouterr().out
    assert 'other classes' in shown and 'bbox_head.retina_cls' in shown
    run(*trained, out, '--force')
    shown = capsys.readouterr().out
    assert 'kept' in shown and 'backbone.stem.*' in shown
    assert sorted(os.listdir(tmp_path)) == ['new.pth', 'new.py']
    cfg = Config.fromfile(out)
    assert cfg.load_from == str(tmp_path / 'new.pth')
    with ZerosForRandom():
        model = build_model(cfg)
    result = model.load_state_dict(
        torch.load(cfg.load_from)['state_dict'], strict=False)
    assert not result.unexpected_keys
    assert all('.conv2.' in key or key.startswith('backbone.stem.')
               for key in result.missing_keys)
    with pytest.raises(FileExistsError):
        run(*trained, out)


def test_a_checkpoint_without_a_resnet(trained, tmp_path):
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'bbox_head.x': torch.zeros(1)}), other)
    with pytest.raises(ValueError, match='of another model'):
        run(trained[0], other, tmp_path / 'new.py')
    assert os.listdir(tmp_path) == ['other.pth']
    with pytest.raises(ValueError, match='no ResNet'):
        convert_backbones({'bbox_head.x': torch.zeros(1)}, dict())


def test_fpt_with_a_new_backbone_is_proved(trained, tmp_path, capsys):
    main(parser().parse_args([
        trained[0], '--backbone', 'lambda-resnet50', '--neck', 'FPT', '--out',
        str(tmp_path / 'new.py'), '--no-costs']))
    assert 'predictions' in capsys.readouterr().out
    cfg = Config.fromfile(tmp_path / 'new.py')
    assert cfg.model.backbone.type == 'LambdaResNet'
    assert cfg.model.neck.type == 'FPT' and 'load_from' not in cfg
