"""Every shipped config builds and trains a step; special configs start as they say."""

from __future__ import annotations

import re
from itertools import combinations
from math import prod

import pytest
import torch
from helpers.shipped_configs import ALL, CONFIGS, build, folder, load
from helpers.train_step import train_step
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from fpt_plugin import (
    FPT,
    IPT,
    TTSR,
    UFP,
    BottomUpPyramid,
    GreenMIM,
    LambdaLayer,
    LambdaResNet,
    PixelGPT,
    RestorationPretrainer,
    SimMIM,
)
from fpt_plugin.commands.convert_weights.command import (
    convert_weights,
    torchvision_resnet,
)
from fpt_plugin.necks.fusion import ConcatFusion

# The modules of which each config of a folder has one.
MODULES = dict(
    fpt=(FPT, BottomUpPyramid, UFP),
    ipt=IPT,
    lambda_resnet=LambdaLayer,
    pretraining=(GreenMIM, SimMIM, RestorationPretrainer, FPT, PixelGPT),
    quickstart=(FPT, GreenMIM),
    ttsr=TTSR)
# The configs of the fast suite, one of each family. test_transformer_configs.py has
# those of transformers with small backbones.
REPRESENTATIVES = (
    'fpt/faster-rcnn_r50_fpt_1x_coco.py',
    'fpt/retinanet_r50_fpt_1x_coco.py',
    'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py',
    'ipt/ipt-mini_1xb8-1k_48.py',
    'lambda_resnet/faster-rcnn_lambda-r50_fpt_1x_coco.py',
    'lambda_resnet/fcn_lambda-r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'lambda_resnet/retinanet_lambda-50ts_fpn_1x_coco.py',
    'pretraining/greenmim_swin-mini-p4-w7_1xb16-2k_192.py',
    'pretraining/pixel-gpt-mini_1xb4-2k_32.py',
    'pretraining/restoration_sem-fpn_mobilenet-v2_fpt_1xb8-2k_nuclei.py',
    'pretraining/simmim_swin-t-p4-w7_8xb256-800e_224.py',
    'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py',
    'ttsr/ttsr-mini_1xb4-2k_camvid-96.py',
)
# The baseline of others.
PLAIN = 'quickstart/deformable-detr_mobilenet-v2_four-tiles.py'
# Their backbones have no published weights.
HYBRIDS = [name for name in ALL if '_lambda-r' in name]


def build_part(cfg: Config, part: str) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model[part])


@pytest.mark.parametrize('name', ALL)
def test_parses_and_builds(name):
    cfg = load(name)
    assert 'fpt_plugin' in cfg.custom_imports.imports
    # The largest PixelGPT would take 5 GB.
    with torch.device('meta' if cfg.model.type == 'PixelGPT' else 'cpu'):
        model = build(cfg)
    if folder(name) == 'studies':
        return  # most rows of a study have other necks
    ours = any(isinstance(m, MODULES[folder(name)]) for m in model.modules())
    assert ours == (name != PLAIN)
    # GPUs times images for each; names of mmdet leave out the usual 8xb2.
    batch = re.search(r'_(\d+)xb(\d+)-', name)
    if batch:
        assert cfg.train_dataloader.batch_size == int(batch[2])
    if 'coco' in name:
        assert cfg.auto_scale_lr.base_batch_size == (
            prod(map(int, batch.groups())) if batch else 16)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in REPRESENTATIVES else pytest.mark.slow)
    for name in ALL])
def test_trains_a_step(name):
    train_step(load(name))


@pytest.mark.parametrize('config, short, pyramid, gt, whole', [
    ('mask-rcnn_r50_{}_1x_coco', 'bup', BottomUpPyramid, 'gt', 'fpt-paper'),
    ('fcn_r101-d8_{}_4xb2-80k_cityscapes-769x769', 'ufp', UFP, 'lgt', 'ufp-fpt')])
def test_ablation_rows(config, short, pyramid, gt, whole):
    """Each row has the pyramid, its own branches and the same fusion."""
    kinds = {'st': 'self_transformers', gt: 'grounding_transformers',
             'rt': 'rendering_transformers'}
    rows = {'-'.join((short, *row)): set(row)
            for length in (1, 2) for row in combinations(kinds, length)}
    for row, wanted in {**rows, whole: set(kinds)}.items():
        neck = build_part(load(f'fpt/{config.format(row)}.py'), 'neck')
        assert {k for k, name in kinds.items() if len(getattr(neck, name))} == wanted
        assert type(neck.pyramid) is pyramid
        assert neck.key_strides == (1, 1, 1, 1)
        assert {type(fusion) for fusion in neck.fusions} == {ConcatFusion}
    plain = build_part(load(f'fpt/{config.format(short)}.py'), 'neck')
    assert type(plain) is pyramid


@pytest.mark.parametrize('name', [
    name for name in ALL if folder(name) in ('pretraining', 'ipt', 'ttsr')])
def test_random_numbers_of_a_resumed_training(name):
    """They repeat, but not those of workers that live on over several epochs."""
    cfg = load(name)
    if cfg.default_scope != 'mmengine':
        return  # a detector or segmentor with pre-trained weights
    assert 'ReseedHook' in str(cfg.custom_hooks)
    if 'Iter' not in str(cfg.train_cfg.get('type')):
        assert not cfg.train_dataloader.get('persistent_workers')


def test_fine_tuning_moves_new_layers_faster():
    cfg = load('fpt/faster-rcnn_r50_fpt_finetune-4e_coco.py')
    model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {p: group['lr'] for group in groups for p in group['params']}
    for name, p in model.named_parameters():
        if p in rates:
            new = name.startswith('neck.') and not name.startswith('neck.pyramid.')
            assert rates[p] == pytest.approx(0.02 if new else 0.002), name


def test_frozen_fine_tuning():
    neck = build(load('fpt/faster-rcnn_r50_fpt-frozen_finetune-4e_coco.py')).neck
    assert not any(p.requires_grad for p in neck.pyramid.parameters())


# ---------------------------------------------------------------- lambda layers


@pytest.mark.parametrize('name', HYBRIDS)
def test_hybrids_train_every_parameter(name):
    """They have no weights: nothing is frozen, and the norms train."""
    cfg = Config.fromfile(CONFIGS / name)
    with torch.device('meta'):
        backbone = build_part(cfg, 'backbone').train()
    assert isinstance(backbone, LambdaResNet)
    assert not backbone.init_cfg
    assert all(p.requires_grad for p in backbone.parameters())
    norms = [m for m in backbone.modules() if hasattr(m, 'running_mean')]
    assert norms and all(
        isinstance(m, torch.nn.SyncBatchNorm) and m.training for m in norms)
    if '-200e_' in name:
        assert cfg.train_cfg.max_epochs * cfg.train_dataloader.dataset.times == 200


def test_converted_convolutions_start_a_hybrid(tmp_path):
    source, out = tmp_path / 'resnet50.pth', tmp_path / 'lambda_r50.pth'
    resnet = MODELS.build(dict(type='mmdet.ResNet', depth=50))
    torch.save(resnet.state_dict(), source)
    convert_weights(torchvision_resnet(50), source, out)
    cfg = Config.fromfile(
        CONFIGS / 'lambda_resnet/mask-rcnn_lambda-r50_fpn_1x_coco.py')
    # As with --cfg-options.
    cfg.merge_from_dict({'model.backbone.init_cfg.type': 'Pretrained',
                         'model.backbone.init_cfg.checkpoint': str(out)})
    backbone = build_part(cfg, 'backbone')
    backbone.init_weights()
    layers, plain = backbone.layer3, resnet.layer3
    assert torch.equal(layers[2].conv2.weight, plain[2].conv2.weight)
    assert isinstance(layers[3].conv2, LambdaLayer)
    assert torch.equal(layers[3].conv3.weight, plain[3].conv3.weight)


def test_missing_file_of_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = build_part(Config.fromfile(
        CONFIGS / 'lambda_resnet/retinanet_lambda-50ts_fpn_1x_coco.py'), 'backbone')
    assert (backbone.depth, backbone.frozen_stages) == ('50ts', 1)
    with pytest.raises(FileNotFoundError, match='checkpoints/lambda_resnet50ts.pth'):
        backbone.init_weights()
