"""Every shipped config parses and builds; representatives train a step."""

from __future__ import annotations

import re
from itertools import combinations
from math import prod

import pytest
import torch
from helpers.shipped_configs import (
    ALL,
    CONFIGS,
    build,
    folder,
    load,
    load_host,
)
from helpers.train_step import SIZE, train_step
from mmengine.config import Config
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
from fpt_plugin.necks.fusion import ConcatFusion

# The modules that a folder's configs are about.
MODULES = dict(
    fpt=(FPT, BottomUpPyramid, UFP),
    ipt=IPT,
    lambda_resnet=LambdaLayer,
    pretraining=(GreenMIM, SimMIM, RestorationPretrainer, FPT, PixelGPT),
    quickstart=(FPT, GreenMIM),
    ttsr=TTSR)
REPRESENTATIVES = (
    'fpt/faster-rcnn_r50_fpt_1x_coco.py',
    'fpt/retinanet_r50_fpt_1x_coco.py',
    'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py',
    'fpt/retinanet_pvt-t_fpt_1x_coco.py',
    'ipt/ipt-mini_1xb16-3k_48.py',
    'fpt/sem-fpn_pvtv2-b0_fpt_4xb4-160k_ade20k-512x512.py',
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
# What others are compared with.
PLAIN = 'quickstart/deformable-detr_mobilenet-v2_four-tiles.py'
# With a backbone that nobody has trained.
HYBRIDS = [name for name in ALL if '_lambda-r' in name]
PLUGIN = 'lambda_resnet/faster-rcnn_r50_lambda-plugin-c4-c5_fpn_1x_coco.py'


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
        return  # a set of rows, most of them with other necks
    ours = any(
        isinstance(module, MODULES[folder(name)]) for module in model.modules())
    assert ours == (name != PLAIN)
    # GPUs times images a GPU; mmdet's configs leave out what is usual there.
    batch = re.search(r'_(\d+)xb(\d+)-', name)
    if batch:
        assert cfg.train_dataloader.batch_size == int(batch[2])
    if 'coco' in name:
        assert cfg.auto_scale_lr.base_batch_size == (
            prod(map(int, batch.groups())) if batch else 16)


@pytest.mark.parametrize('name', REPRESENTATIVES)
def test_trains_a_step(name):
    train_step(load(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [name for name in ALL if name not in REPRESENTATIVES])
def test_all_train_a_step(name):
    train_step(load(name))


@pytest.mark.parametrize('config, short, pyramid, gt, whole', [
    ('mask-rcnn_r50_{}_1x_coco', 'bup', BottomUpPyramid, 'gt', 'fpt-paper'),
    ('fcn_r101-d8_{}_4xb2-80k_cityscapes-769x769', 'ufp', UFP, 'lgt',
     'ufp-fpt'),
])
def test_the_ablation_adds_up(config, short, pyramid, gt, whole):
    """Each row has the pyramid and its own branches, and one fusion."""
    kinds = {
        'st': 'self_transformers',
        gt: 'grounding_transformers',
        'rt': 'rendering_transformers'
    }
    rows = {
        '-'.join((short, *row)): set(row)
        for length in (1, 2) for row in combinations(kinds, length)
    }
    rows[whole] = set(kinds)
    for row, wanted in rows.items():
        neck = build_part(load(f'fpt/{config.format(row)}.py'), 'neck')
        present = {k for k, name in kinds.items() if len(getattr(neck, name))}
        assert present == wanted
        assert type(neck.pyramid) is pyramid
        assert neck.key_strides == (1, 1, 1, 1)
        assert {type(fusion) for fusion in neck.fusions} == {ConcatFusion}
    plain = build_part(load(f'fpt/{config.format(short)}.py'), 'neck')
    assert type(plain) is pyramid


def test_fine_tuning_moves_new_layers_faster():
    cfg = load('fpt/faster-rcnn_r50_fpt_finetune-4e_coco.py')
    model = build(cfg)
    from mmengine.optim import build_optim_wrapper
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for p in group['params']:
            rates[names[id(p)]] = group['lr']
    for name, rate in rates.items():
        new = name.startswith('neck.') and not name.startswith('neck.pyramid.')
        assert rate == pytest.approx(0.02 if new else 0.002), name


def test_frozen_fine_tuning():
    neck = build(load('fpt/faster-rcnn_r50_fpt-frozen_finetune-4e_coco.py')).neck
    assert not any(p.requires_grad for p in neck.pyramid.parameters())


@pytest.mark.parametrize('name', HYBRIDS)
def test_what_is_new_learns(name):
    """All of a hybrid, until the command line names weights for it."""
    cfg = Config.fromfile(CONFIGS / name)
    with torch.device('meta'):
        backbone = build_part(cfg, 'backbone').train()
    assert isinstance(backbone, LambdaResNet)
    assert not backbone.init_cfg
    assert all(p.requires_grad for p in backbone.parameters())
    norms = [m for m in backbone.modules() if hasattr(m, 'running_mean')]
    assert norms and all(
        isinstance(m, torch.nn.SyncBatchNorm) and m.training for m in norms)
    cfg.merge_from_dict({
        'model.backbone.init_cfg.type': 'Pretrained',
        'model.backbone.init_cfg.checkpoint': 'checkpoints/lambda.pth'
    })
    assert cfg.model.backbone.init_cfg.checkpoint == 'checkpoints/lambda.pth'
    if '-200e_' in name:
        assert (cfg.train_cfg.max_epochs *
                cfg.train_dataloader.dataset.times) == 200


def test_converted_convolutions_start_a_hybrid(tmp_path):
    from fpt_plugin.commands.convert_weights.command import (
        convert_weights,
        torchvision_resnet,
    )
    source, out = tmp_path / 'resnet50.pth', tmp_path / 'lambda_r50.pth'
    resnet = MODELS.build(dict(type='mmdet.ResNet', depth=50))
    torch.save(resnet.state_dict(), source)
    convert_weights(torchvision_resnet(50), source, out)
    cfg = load('lambda_resnet/mask-rcnn_lambda-r50_fpn_1x_coco.py')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(out))
    backbone = build_part(cfg, 'backbone')
    backbone.init_weights()
    assert torch.equal(backbone.layer3[2].conv2.weight,
                       resnet.layer3[2].conv2.weight)
    assert isinstance(backbone.layer3[3].conv2, LambdaLayer)
    assert torch.equal(backbone.layer3[3].conv3.weight,
                       resnet.layer3[3].conv3.weight)


def test_a_missing_file_of_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(CONFIGS /
                          'lambda_resnet/retinanet_lambda-50ts_fpn_1x_coco.py')
    backbone = build_part(cfg, 'backbone')
    assert (backbone.depth, backbone.frozen_stages) == ('50ts', 1)
    with pytest.raises(
            FileNotFoundError, match='checkpoints/lambda_resnet50ts.pth'):
        backbone.init_weights()


def test_the_plugin_keeps_a_trained_resnet(tmp_path):
    cfg = load(PLUGIN)
    resnet = build_part(load_host(PLUGIN), 'backbone')
    for module in resnet.modules():  # as if it were trained
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -.1, .1)
            torch.nn.init.uniform_(module.running_var, .5, 2)
    torch.save(resnet.state_dict(), tmp_path / 'resnet.pth')
    loaded = build_part(cfg, 'backbone')
    keys = loaded.load_state_dict(resnet.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert all('.lambda_layer' in key for key in keys.missing_keys)
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    initialised = build_part(cfg, 'backbone')
    initialised.init_weights()
    assert sum(isinstance(m, LambdaLayer) for m in loaded.modules()) == 6 + 3
    for backbone in (resnet, loaded, initialised):
        backbone.train()  # mmdet's gives back nothing
    x = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        expected = resnet(x)
        for backbone in (loaded, initialised):
            assert all(map(torch.equal, backbone(x), expected))
