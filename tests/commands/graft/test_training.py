"""Training of grafted models: learning rates, freezing, and a few iterations."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.graft_detectors import BACKBONE, CHANNELS, FPN, config, retinanet, write
from helpers.miniature_coco import write_coco_tree
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from fpt_plugin import FPT
from fpt_plugin.commands.graft import graft
from fpt_plugin.commands.graft.command import main, parser
from fpt_plugin.commands.graft.weights import randomise
from fpt_plugin.engine.train_graft_only import TrainGraftOnlyHook
from fpt_plugin.openmmlab.models import build_model, load_config

TOOLS = Path(__file__).parents[3] / 'tools'


def rates(cfg: Config) -> dict[str, float]:
    """Return the learning rates by parameter."""
    model = build_model(cfg)
    init_default_scope('mmdet')
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group['lr'] for group in wrapper.optimizer.param_groups
            for p in group['params']}


def is_new(name: str) -> bool:
    own = ('self_transformers', 'grounding_transformers',
           'rendering_transformers', 'fusions')
    return name.startswith('neck.') and any(f'.{part}.' in name for part in own)


# A ResNet-50 of an eighth of the width.
RESNET = dict(type='ResNet', depth=50, base_channels=8, stem_channels=8)


def bottlenecks() -> Config:
    model = retinanet(dict(FPN, in_channels=[32, 64, 128, 256])).model.to_dict()
    return config(dict(model, backbone=RESNET))


@pytest.mark.parametrize('neck', [
    FPN, [FPN, dict(type='BFP', in_channels=16, num_levels=5)]])
def test_learning_rates_of_fpt(neck):
    cfg = retinanet(neck)
    cfg.optim_wrapper.paramwise_cfg = dict(
        norm_decay_mult=0., custom_keys=dict(backbone=dict(lr_mult=0.1)))
    new = graft(cfg, lr_mult=5)
    assert new.optim_wrapper.paramwise_cfg.norm_decay_mult == 0.
    found = rates(new)
    assert any(map(is_new, found))
    for name, rate in found.items():
        want = 0.05 if is_new(name) else (
            0.001 if name.startswith('backbone') else 0.01)
        assert rate == pytest.approx(want), name


@pytest.mark.parametrize('first', [['--lr-mult', '3'], []])
def test_two_grafts_with_their_rates(first, tmp_path):
    """The second graft keeps the first one's rate; the config's text has both."""
    path = write(bottlenecks(), tmp_path / 'plain.py')
    for name, flags in (('one', ['--lambda-plugins', *first]),
                        ('two', ['--neck', 'FPT', '--lr-mult', '5'])):
        out = tmp_path / f'{name}.py'
        main(parser().parse_args([
            path, '--out', str(out), '--no-costs', '--no-proof', *flags]))
        path = str(out)
    found = rates(Config.fromfile(path))
    layers = {name for name in found if '.lambda_layer' in name}
    assert any(name.endswith('.gate') for name in layers)
    for name, rate in found.items():
        want = 0.05 if is_new(name) else 0.03 if first and name in layers else 0.01
        assert rate == pytest.approx(want), name


ONE_CYCLE = dict(type='OneCycleLR', eta_max=1.)


@pytest.mark.parametrize('change, lr_mult, error, words', [
    (dict(optim_wrapper=None), 2, ValueError, 'optim_wrapper'),
    (dict(param_scheduler=[ONE_CYCLE]), 2, ValueError, 'OneCycleLR'),
    (dict(param_scheduler=ONE_CYCLE), 2, ValueError, 'OneCycleLR'),
    ({}, 0, ValueError, 'above 0'),
    ({}, float('nan'), ValueError, 'above 0'),
    ({}, '3', TypeError, "'3'"),
])
def test_bad_learning_rates(change, lr_mult, error, words):
    cfg = retinanet(FPN)
    cfg.update(change)
    with pytest.raises(error, match=words):
        graft(cfg, lr_mult=lr_mult)


def test_the_config_of_train_neck_only():
    cfg = retinanet(FPN)
    cfg.custom_hooks = [dict(type='NumClassCheckHook')]
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel')
    new = graft(cfg, train_neck_only=True)
    assert new.custom_hooks == [
        dict(type='NumClassCheckHook'), dict(type='TrainGraftOnlyHook')]
    assert new.find_unused_parameters
    assert new.model_wrapper_cfg.find_unused_parameters
    assert 'custom_hooks' not in graft(retinanet(FPN))


def test_the_hook_freezes_parameters_and_norms():
    neck = dict(FPN, norm_cfg=dict(type='BN'))
    cfg = graft(retinanet(neck), neck_options=dict(
        fusion_norm_cfg=dict(type='BN')))
    model = build_model(cfg)
    hook, runner = TrainGraftOnlyHook(), SimpleNamespace(model=model)
    hook.before_train(runner)
    model.train()
    hook.before_train_iter(runner, 0)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if is_new(n)}
    norms = {n: m.training for n, m in model.named_modules()
             if isinstance(m, torch.nn.BatchNorm2d)}
    assert any(norms.values())
    for name, training in norms.items():
        assert training == is_new(f'{name}.')
    # Gradients pass through the heads, and stop before the graft.
    out = model.bbox_head(model.neck(model.backbone(torch.rand(2, 3, 64, 64))))
    sum(x.square().sum() for level in out for x in level).backward()
    with_gradient = {n for n, p in model.named_parameters()
                     if p.grad is not None}
    assert with_gradient == trainable


# ------------------------------------------------------------ a few iterations


RPN = dict(in_channels=16, feat_channels=16)
ROI = dict(bbox_roi_extractor=dict(out_channels=16),
           bbox_head=dict(in_channels=16, fc_out_channels=16))
MASK = dict(mask_roi_extractor=dict(out_channels=16),
            mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1))
ONE_STAGE = dict(in_channels=16, feat_channels=16, stacked_convs=1)
ATTENTION = dict(embed_dims=16, num_heads=2)
LAYER = dict(self_attn_cfg=ATTENTION,
             ffn_cfg=dict(embed_dims=16, feedforward_channels=32))
# Configs of mmdet, and changes that make their models small.
MODELS = {
    'two-stage': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', dict(
        rpn_head=RPN, roi_head=ROI)),
    'mask': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', dict(
        rpn_head=RPN, roi_head=dict(ROI, **MASK))),
    'one-stage': ('retinanet/retinanet_r50_fpn_1x_coco.py', dict(
        bbox_head=ONE_STAGE)),
    'anchor-free': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', dict(
        neck=dict(type='PAFPN'),
        bbox_head=dict(ONE_STAGE, norm_cfg=dict(type='GN', num_groups=4)))),
    'deformable-detr': ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', dict(
        num_queries=20,
        backbone=dict(out_indices=(1, 2, 3)),
        neck=dict(in_channels=CHANNELS[1:], norm_cfg=dict(num_groups=4)),
        encoder=dict(num_layers=1, layer_cfg=LAYER),
        decoder=dict(num_layers=2, layer_cfg=dict(LAYER, cross_attn_cfg=ATTENTION)),
        positional_encoding=dict(num_feats=8),
        bbox_head=dict(embed_dims=16))),
}


def small(name: str) -> dict:
    base, changes = MODELS[name]
    cfg = load_config(f'mmdet::{base}', dict(model=changes))
    cfg.model.backbone = dict(BACKBONE, out_indices=cfg.model.backbone.out_indices)
    cfg.model.neck.out_channels = 16
    if 'neck' not in changes or 'in_channels' not in changes['neck']:
        cfg.model.neck.in_channels = CHANNELS
    return cfg.model.to_dict()


def trained_for(model: dict, root, iterations: int = 5) -> Config:
    """Return a config that trains on the miniature COCO."""
    mask = model['type'] == 'MaskRCNN'
    model = dict(
        copy.deepcopy(model),
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255],
            pad_size_divisor=32, pad_mask=mask))
    cfg = config(
        model,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations),
        train_dataloader=dict(
            batch_size=2, num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            dataset=dict(
                type='CocoDataset', data_root=str(root),
                ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/'),
                filter_cfg=dict(filter_empty_gt=True, min_size=8),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations', with_bbox=True,
                         with_mask=mask),
                    dict(type='Resize', scale=(96, 96), keep_ratio=True),
                    dict(type='PackDetInputs')
                ])))
    cfg.optim_wrapper.clip_grad = dict(max_norm=10.)
    # With other seeds no anchor of some level may be sampled, so that its fusion
    # is not trained.
    cfg.randomness = dict(seed=0)
    cfg.custom_imports = dict(imports=['fpt_plugin'],
                              allow_failed_imports=False)
    return cfg


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp('coco')
    write_coco_tree(root)
    return root


def write_graft(plain_cfg: Config, folder: Path, *flags: str) -> dict:
    """Graft by the command onto random weights, which are returned."""
    plain = build_model(plain_cfg)
    randomise(plain)
    torch.save(dict(state_dict=plain.state_dict(), meta={}), folder / 'old.pth')
    main(parser().parse_args([
        write(plain_cfg, folder / 'plain.py'), '--out', str(folder / 'new.py'),
        '--checkpoint', str(folder / 'old.pth'), '--no-costs', *flags]))
    return plain.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize('only', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_a_graft_trains_from_the_plain_checkpoint(name, only, tree, tmp_path):
    """Train the config that the command has written."""
    flags = ['--lr-mult', '2', *(['--train-neck-only'] if only else [])]
    old = write_graft(trained_for(small(name), tree), tmp_path, *flags)
    cfg = Config.fromfile(tmp_path / 'new.py')
    cfg.work_dir = str(tmp_path / 'work')
    runner = Runner.from_cfg(cfg)
    runner.train()
    neck = runner.model.neck
    assert isinstance(neck, FPT)
    moved = {}
    for key, value in runner.model.state_dict().items():
        assert value.isfinite().all(), key
        source = key.replace('neck.pyramid.', 'neck.')
        if source in old:
            moved[key] = not torch.equal(value, old[source])
    assert any(moved.values()) != only
    assert all(fusion.out_conv.weight.any() for fusion in neck.fusions)
    if only:
        gradients = {k for k, p in runner.model.named_parameters()
                     if p.requires_grad}
        assert gradients and all(map(is_new, gradients))


@pytest.mark.slow
def test_two_processes_train_only_the_graft(tree, tmp_path):
    """The models are wrapped before the hook freezes parameters."""
    plain_cfg = trained_for(small('one-stage'), tree, iterations=3)
    plain_cfg.default_hooks = dict(checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=3))
    old = write_graft(plain_cfg, tmp_path, '--train-neck-only', '--no-proof')
    result = subprocess.run(
        ['bash', str(TOOLS / 'dist_train.sh'), str(tmp_path / 'new.py'), '2',
         '--work-dir', str(tmp_path / 'run')],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1',
             'PYTHONPATH': str(TOOLS.parent),
             'PORT': str(20000 + os.getpid() % 10000)})
    assert result.returncode == 0, result.stderr
    new = torch.load(tmp_path / 'run' / 'iter_3.pth')['state_dict']
    for key, value in old.items():
        assert torch.equal(new[key.replace('neck.', 'neck.pyramid.')], value)
    assert new['neck.fusions.0.out_conv.weight'].any()
