"""How a grafted model is trained: what moves, and by how much."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

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
from fpt_plugin.engine.train_graft_only import TrainGraftOnlyHook, grafted_modules
from fpt_plugin.openmmlab.models import build_model, load_config

TOOLS = Path(__file__).parents[3] / 'tools'


def options(cfg: Config) -> dict[str, dict]:
    """The optimizer's options for each parameter, by its name."""
    model = build_model(cfg)
    init_default_scope('mmdet')
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: {k: v for k, v in group.items() if k != 'params'}
            for group in wrapper.optimizer.param_groups
            for p in group['params']}


def rates(cfg: Config) -> dict[str, float]:
    """The learning rate of each parameter, by its name."""
    return {name: found['lr'] for name, found in options(cfg).items()}


def is_new(name: str) -> bool:
    own = ('self_transformers', 'grounding_transformers',
           'rendering_transformers', 'fusions')
    return name.startswith('neck.') and any(f'.{part}.' in name for part in own)


@pytest.mark.parametrize('neck', [
    FPN, [FPN, dict(type='BFP', in_channels=16, num_levels=5)]])
def test_the_neck_learns_faster(neck):
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


def test_lambda_layers_learn_faster():
    backbone = dict(type='ResNet', depth=50, base_channels=8, stem_channels=8)
    model = retinanet(dict(FPN, in_channels=[32, 64, 128, 256])).model.to_dict()
    model['backbone'] = backbone
    found = rates(graft(config(model), lambda_plugins=True, lr_mult=3))
    new = {n for n in found if '.lambda_layer' in n}
    assert any(name.endswith('.gate') for name in new)
    for name, rate in found.items():
        assert rate == pytest.approx(0.03 if name in new else 0.01), name


RESNET = dict(type='ResNet', depth=50, base_channels=8, stem_channels=8)


RTMDET = 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'


@pytest.mark.parametrize('of, graft_of', [
    (RTMDET, {}), (FCOS, {}),
    ('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', {}),
    ('retinanet/retinanet_r50_fpn_1x_coco.py', {}),
    (FCOS, dict(backbone='lambda-resnet50')),
    (RTMDET, dict(neck='FPT', lambda_plugins=True))])
def test_the_rules_of_the_hosts_hold(of, graft_of):
    """Decay of norms and biases, rates of biases, custom keys."""
    neck = dict(FPN, in_channels=[32, 64, 128, 256])
    if graft_of.get('backbone'):
        neck['in_channels'] = [256, 512, 1024, 2048]
    model = retinanet(neck).model.to_dict()
    model['backbone'] = dict(RESNET) if 'backbone' not in graft_of else dict(
        type='ResNet', depth=50)
    cfg = config(model)
    cfg.optim_wrapper = load_config(f'mmdet::{of}').optim_wrapper
    plain, found = (options(graft(cfg, lr_mult=factor, **graft_of))
                    for factor in (None, 7))
    assert plain.keys() == found.keys()
    new = {name for name in found if found[name]['lr'] != plain[name]['lr']}
    assert any(map(is_new, new)) == ('neck' in graft_of or not graft_of)
    assert any('.lambda_layer.' in name or '.conv2.qkv.' in name
               for name in new) == bool(graft_of)
    for name, given in found.items():
        factor = 7 if name in new else 1
        assert given == {**plain[name], 'lr': plain[name]['lr'] * factor}, name


def test_what_was_there_before_is_not_new():
    """FPT and lambda layers of the base keep their rate."""
    model = retinanet(dict(FPN, in_channels=[32, 64, 128, 256])).model.to_dict()
    model['backbone'] = RESNET
    first = graft(config(model), lambda_plugins=True)
    found = rates(graft(first, neck='FPT', lr_mult=3))
    assert {n for n, rate in found.items() if rate != 0.01} == {
        n for n in found if is_new(n)}


def test_two_grafts_with_their_rates(tmp_path):
    """The second one keeps the first one's; the text of a config holds both."""
    model = retinanet(dict(FPN, in_channels=[32, 64, 128, 256])).model.to_dict()
    model['backbone'] = RESNET
    path = write(config(model), tmp_path / 'plain.py')
    for name, flags in (('one', ['--lambda-plugins', '--lr-mult', '3']),
                        ('two', ['--neck', 'FPT', '--lr-mult', '5'])):
        out = tmp_path / f'{name}.py'
        main(parser().parse_args([
            path, '--out', str(out), '--no-costs', '--no-proof', *flags]))
        path = str(out)
    for name, rate in rates(Config.fromfile(path)).items():
        want = 0.05 if is_new(name) else 0.03 if '.lambda_layer' in name else 0.01
        assert rate == pytest.approx(want), name


@pytest.mark.parametrize('change, lr_mult, error, words', [
    (lambda c: c.pop('optim_wrapper'), 2, ValueError, ['optim_wrapper']),
    (lambda c: c.update(param_scheduler=[dict(type='OneCycleLR', eta_max=1.)]),
     2, ValueError, ['OneCycleLR']),
    (lambda c: c.update(param_scheduler=dict(type='OneCycleLR', eta_max=1.)),
     2, ValueError, ['OneCycleLR']),
    (lambda c: None, 0, ValueError, ['above 0']),
    (lambda c: None, float('nan'), ValueError, ['above 0']),
    (lambda c: None, '3', TypeError, ["'3'"]),
])
def test_bad_learning_rates(change, lr_mult, error, words):
    cfg = retinanet(FPN)
    change(cfg)
    with pytest.raises(error) as caught:
        graft(cfg, lr_mult=lr_mult)
    for word in words:
        assert word in str(caught.value)


def test_only_the_graft_is_trained():
    cfg = retinanet(FPN)
    cfg.custom_hooks = [dict(type='NumClassCheckHook')]
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel')
    new = graft(cfg, train_neck_only=True)
    assert new.custom_hooks == [
        dict(type='NumClassCheckHook'), dict(type='TrainGraftOnlyHook')]
    assert new.find_unused_parameters
    assert new.model_wrapper_cfg.find_unused_parameters
    assert 'custom_hooks' not in graft(retinanet(FPN))


class Training:
    """As much of a runner as the hook sees."""

    def __init__(self, model):
        self.model = model


def test_the_hook_stops_gradients_and_norms():
    neck = dict(FPN, norm_cfg=dict(type='BN'))
    cfg = graft(retinanet(neck), neck_options=dict(
        fusion_norm_cfg=dict(type='BN')))
    model = build_model(cfg)
    hook, runner = TrainGraftOnlyHook(), Training(model)
    hook.before_train(runner)
    model.train()
    hook.before_train_iter(runner, 0)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in model.named_parameters() if is_new(n)}
    norms = {n: m.training for n, m in model.named_modules()
             if isinstance(m, torch.nn.BatchNorm2d)}
    assert any(norms.values())
    for name, training in norms.items():
        assert training == is_new(f'{name}.')
    # The heads pass gradients on, and what is before the graft gets none.
    out = model.bbox_head(model.neck(model.backbone(torch.rand(2, 3, 64, 64))))
    sum(x.square().sum() for level in out for x in level).backward()
    with_gradient = {n for n, p in model.named_parameters()
                     if p.grad is not None}
    assert with_gradient == learning


def test_the_hook_refuses_a_plain_model():
    with pytest.raises(ValueError, match='FPT'):
        TrainGraftOnlyHook().before_train(Training(build_model(retinanet(FPN))))
    assert not grafted_modules(build_model(retinanet(FPN)))[0]


# ------------------------------------------------------------ a few iterations


def two_stage(mask: bool = False) -> dict:
    assigner = dict(
        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5,
        min_pos_iou=0.3, ignore_iof_thr=-1)
    sampler = dict(type='RandomSampler', num=32, pos_fraction=0.5,
                   neg_pos_ub=-1, add_gt_as_proposals=True)

    def extractor(size: int) -> dict:
        return dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=size,
                           sampling_ratio=2),
            out_channels=16, featmap_strides=[4, 8, 16, 32])

    model = dict(
        type='MaskRCNN' if mask else 'FasterRCNN',
        backbone=BACKBONE,
        neck=FPN,
        rpn_head=dict(
            type='RPNHead', in_channels=16, feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[1.0],
                strides=[4, 8, 16, 32, 64]),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss')),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=extractor(7),
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=16,
                roi_feat_size=7, num_classes=80,
                loss_cls=dict(type='CrossEntropyLoss'),
                loss_bbox=dict(type='L1Loss'))),
        train_cfg=dict(
            rpn=dict(assigner=assigner, sampler=dict(
                sampler, add_gt_as_proposals=False), allowed_border=-1,
                pos_weight=-1),
            rpn_proposal=dict(
                nms_pre=50, max_per_img=50,
                nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(assigner=assigner, sampler=sampler, pos_weight=-1,
                      mask_size=14)),
        test_cfg=dict(
            rpn=dict(nms_pre=50, max_per_img=50,
                     nms=dict(type='nms', iou_threshold=0.7),
                     min_bbox_size=0),
            rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                      max_per_img=10, mask_thr_binary=0.5)))
    if mask:
        model['roi_head'].update(
            mask_roi_extractor=extractor(7),
            mask_head=dict(
                type='FCNMaskHead', num_convs=1, in_channels=16,
                conv_out_channels=16, num_classes=80,
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True)))
    return model


def one_stage() -> dict:
    model = retinanet(FPN).model.to_dict()
    model['bbox_head']['num_classes'] = 80
    return model


def anchor_free() -> dict:
    return dict(
        type='FCOS',
        backbone=BACKBONE,
        neck=dict(FPN, start_level=1, add_extra_convs='on_output',
                  type='PAFPN'),
        bbox_head=dict(
            type='FCOSHead', num_classes=80, in_channels=16, stacked_convs=1,
            feat_channels=16, strides=[8, 16, 32, 64, 128],
            norm_cfg=dict(type='GN', num_groups=4)),
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0,
                      nms=dict(type='nms', iou_threshold=0.5),
                      max_per_img=10))


def deformable_detr() -> dict:
    attention = dict(embed_dims=16, num_heads=2, dropout=0.0,
                     batch_first=True)
    ffn = dict(embed_dims=16, feedforward_channels=32, ffn_drop=0.0)
    return dict(
        type='DeformableDETR',
        num_queries=20,
        num_feature_levels=4,
        backbone=dict(BACKBONE, out_indices=(1, 2, 3)),
        neck=dict(type='ChannelMapper', in_channels=CHANNELS[1:],
                  kernel_size=1, out_channels=16, act_cfg=None,
                  norm_cfg=dict(type='GN', num_groups=4), num_outs=4),
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=16, num_heads=2, num_levels=4,
                                   batch_first=True), ffn_cfg=ffn)),
        decoder=dict(
            num_layers=2, return_intermediate=True, post_norm_cfg=None,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=dict(embed_dims=16, num_heads=2, num_levels=4,
                                    batch_first=True), ffn_cfg=ffn)),
        positional_encoding=dict(num_feats=8, normalize=True),
        bbox_head=dict(
            type='DeformableDETRHead', num_classes=80, embed_dims=16,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'), loss_iou=dict(type='GIoULoss')),
        train_cfg=dict(assigner=dict(
            type='HungarianAssigner',
            match_costs=[dict(type='FocalLossCost'),
                         dict(type='BBoxL1Cost', box_format='xywh'),
                         dict(type='IoUCost', iou_mode='giou')])),
        test_cfg=dict(max_per_img=10))


MODELS = {
    'two-stage': two_stage,
    'mask': lambda: two_stage(mask=True),
    'one-stage': one_stage,
    'anchor-free': anchor_free,
    'deformable-detr': deformable_detr,
}


def trained_for(model: dict, root, iterations: int = 5) -> Config:
    """A config that trains on the miniature COCO."""
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
    # By chance no anchor of some level is sampled, and its fusion learns nothing.
    cfg.randomness = dict(seed=0)
    cfg.custom_imports = dict(imports=['fpt_plugin'],
                              allow_failed_imports=False)
    return cfg


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp('coco')
    write_coco_tree(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize('only', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_a_graft_trains_from_the_plain_checkpoint(name, only, tree, tmp_path):
    """The command's config as it is, from a checkpoint of the plain model."""
    plain_cfg = trained_for(MODELS[name](), tree)
    plain = build_model(plain_cfg)
    randomise(plain)
    checkpoint = tmp_path / 'old.pth'
    torch.save(dict(state_dict=plain.state_dict(), meta={}), checkpoint)
    out = tmp_path / 'new.py'
    flags = ['--train-neck-only'] if only else []
    main(parser().parse_args([
        write(plain_cfg, tmp_path / 'plain.py'), '--out', str(out),
        '--checkpoint', str(checkpoint), '--lr-mult', '2', '--no-costs',
        *flags]))
    cfg = Config.fromfile(out)
    cfg.work_dir = str(tmp_path / 'work')
    runner = Runner.from_cfg(cfg)
    runner.train()
    neck = runner.model.neck
    assert isinstance(neck, FPT)
    moved = {}
    old = plain.state_dict()
    for key, value in runner.model.state_dict().items():
        assert value.isfinite().all(), key
        source = key.replace('neck.pyramid.', 'neck.')
        if source in old:
            moved[key] = not torch.equal(value, old[source])
    assert any(moved.values()) != only
    for fusion in neck.fusions:
        assert fusion.out_conv.weight.any()
    if only:
        gradients = {k for k, p in runner.model.named_parameters()
                     if p.requires_grad}
        assert gradients and all(map(is_new, gradients))


@pytest.mark.slow
def test_two_processes_train_the_graft_alone(tree, tmp_path):
    """The models are wrapped before the hook stops gradients."""
    plain_cfg = trained_for(one_stage(), tree, iterations=3)
    plain_cfg.default_hooks = dict(checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=3))
    plain = build_model(plain_cfg)
    randomise(plain)
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'old.pth')
    main(parser().parse_args([
        write(plain_cfg, tmp_path / 'plain.py'), '--out',
        str(tmp_path / 'new.py'), '--checkpoint', str(tmp_path / 'old.pth'),
        '--train-neck-only', '--no-costs', '--no-proof']))
    result = subprocess.run(
        ['bash', str(TOOLS / 'dist_train.sh'), str(tmp_path / 'new.py'), '2',
         '--work-dir', str(tmp_path / 'run')],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1',
             'PYTHONPATH': str(TOOLS.parent),
             'PORT': str(20000 + os.getpid() % 10000)})
    assert result.returncode == 0, result.stderr
    new = torch.load(tmp_path / 'run' / 'iter_3.pth')['state_dict']
    for key, value in plain.state_dict().items():
        assert torch.equal(new[key.replace('neck.', 'neck.pyramid.')], value)
    assert new['neck.fusions.0.out_conv.weight'].any()
