"""Weights of masked pre-training in detectors and segmentors of both libraries."""

from __future__ import annotations

import pytest
import torch
from helpers.graft_detectors import FPN, retinanet
from helpers.masked_swins import green_mim, sim_mim, swin
from helpers.shipped_configs import CONFIGS
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional as F

from fpt_plugin.commands.convert_weights.command import main, parser
from fpt_plugin.commands.convert_weights.pretrained import convert_pretrained


def small(library='mmdet', **settings):
    return dict(swin(library, **settings), out_indices=(0, 1, 2, 3))


def segmentor(library='mmseg', **settings):
    return Config(dict(
        default_scope='mmseg',
        model=dict(
            type='EncoderDecoder',
            backbone=small(library, **settings),
            neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8,
                      num_outs=4),
            decode_head=dict(
                type='FCNHead', in_channels=8, in_index=0, channels=8,
                num_classes=2, num_convs=1))))


def detector(**settings):
    cfg = retinanet(FPN)
    cfg.model.backbone = small('mmdet', **settings)
    return cfg


@pytest.fixture
def save(tmp_path):
    def write(model, **more):
        path = tmp_path / 'in.pth'
        torch.save(dict(state_dict=dict(model.state_dict(), **more)), path)
        return path

    return write


@pytest.mark.parametrize('into', [detector, segmentor])
@pytest.mark.parametrize('make, library', [(green_mim, 'mmdet'), (sim_mim, 'mmseg')])
def test_the_printed_lines_load_the_weights(make, library, into, save, tmp_path,
                                            messages):
    model = make(swin(library))
    cfg, out = into(), tmp_path / 'new/out.pth'
    transfer = convert_pretrained(save(model), out, cfg)
    settings = {}
    exec('\n'.join(transfer.usage), settings)
    cfg.merge_from_dict(dict(model=settings['model']))
    assert ('convert_weights' in cfg.model.backbone) == (into is detector)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loaded = MODELS.build(cfg.model)
    loaded.init_weights()
    found = loaded.backbone.state_dict()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(found[key], value), key


def test_every_key_is_listed(save, tmp_path):
    transfer = convert_pretrained(
        save(green_mim()), tmp_path / 'out.pth', segmentor())
    backbone = {k for k in transfer.keys if k.startswith('backbone.')}
    norms = {f'backbone.norm{i}.{name}' for i in range(3)
             for name in ('weight', 'bias')}
    assert set(transfer.state_dict) == backbone - norms
    assert set(transfer.new) == norms | {
        k for k in transfer.keys if not k.startswith('backbone.')}
    assert all(key.startswith('decoder.') for key in transfer.left)
    assert not any('relative_position_index' in key for key in torch.load(
        tmp_path / 'out.pth')['state_dict'])
    lines = '\n'.join(transfer.lines())
    for name in ('backbone.norm0.*', 'neck.*', 'decode_head.*', 'decoder.*'):
        assert name in lines


def test_another_window(save, tmp_path, capsys):
    """Tables of position biases are resized as the backbone's init_cfg does."""
    model = green_mim()
    cfg, out, config = segmentor(window_size=3), tmp_path / 'out.pth', tmp_path / 'c.py'
    segmentor().dump(config)
    transfer = main(parser().parse_args([
        'pretrained', str(save(model)), str(out), '--into', str(config),
        '--cfg-options', 'model.backbone.window_size=3']))
    assert 'resized   8' in capsys.readouterr().out
    assert len(transfer.resized) == 8
    name = 'stages.1.blocks.1.attn.w_msa.relative_position_bias_table'
    table = model.state_dict()[f'backbone.{name}']
    wanted = F.interpolate(
        table.t().view(1, 2, 3, 3), (5, 5), mode='bicubic').view(2, 25).t()
    written = torch.load(out)['state_dict']
    assert torch.equal(written[f'backbone.{name}'], wanted)
    # load_from, which does not resize, loads it as well.
    with DefaultScope.overwrite_default_scope('mmseg'):
        loaded = MODELS.build(cfg.model)
    assert not loaded.load_state_dict(written, strict=False).unexpected_keys


def test_absolute_positions_are_loaded_by_load_from(save, tmp_path):
    positions = dict(use_abs_pos_embed=True, pretrain_img_size=64)
    model = green_mim(swin(**positions))
    transfer = convert_pretrained(
        save(model), tmp_path / 'out.pth', segmentor(**positions))
    assert transfer.usage == [f"load_from = '{tmp_path}/out.pth'"]
    assert 'backbone.absolute_pos_embed' in transfer.state_dict


@pytest.mark.parametrize('settings, text', [
    (dict(depths=(2, 2, 4, 2)), 'has no backbone.stages.2.blocks.2'),
    (dict(depths=(2, 2, 1, 2)), 'the model has no backbone.stages.2.blocks.1'),
    (dict(num_heads=(2, 2, 2, 4)), r'bias_table is \(9, 1\), in the model \(9, 2\)'),
    (dict(patch_norm=False), 'the model has no backbone.patch_embed.norm'),
    (dict(embed_dims=16), r'is \(8, 3, 4, 4\), in the model \(16, 3, 4, 4\)'),
    (dict(use_abs_pos_embed=True), 'has no backbone.absolute_pos_embed'),
])
def test_another_backbone(settings, text, save, tmp_path):
    cfg, out = segmentor(), tmp_path / 'out.pth'
    cfg.merge_from_dict(dict(model=dict(backbone=settings)))
    if 'embed_dims' in settings:
        cfg.model.neck.in_channels = [16, 32, 64, 128]
    with pytest.raises(ValueError, match=text):
        convert_pretrained(save(green_mim()), out, cfg)
    assert not out.exists()


def test_other_files(save, tmp_path):
    source = save(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match='must be a checkpoint of pre-training.*got '
                       'weight, bias'):
        convert_pretrained(source, tmp_path / 'out.pth', segmentor())
    with pytest.raises(ValueError, match='out must name another file'):
        convert_pretrained(source, source, segmentor())


@pytest.mark.slow
@pytest.mark.parametrize('host, name', [
    ('mask-rcnn_swin-t-p4-w7_fpt_amp-ms-crop-3x_coco',
     'mask-rcnn_swin-t-p4-w7_fpt_greenmim_amp-ms-crop-3x_coco'),
    ('sem-fpn_swin-t-p4-w7_fpt_4xb2-80k_cityscapes-512x1024',
     'sem-fpn_swin-t-p4-w7_fpt_greenmim_4xb2-80k_cityscapes-512x1024'),
])
def test_shipped_configs_load_the_written_weights(host, name, tmp_path):
    with DefaultScope.overwrite_default_scope('mmengine'):
        model = MODELS.build(Config.fromfile(
            CONFIGS / 'pretraining/greenmim_swin-t-p4-w7_8xb256-800e_224.py').model)
    torch.save(model.state_dict(), tmp_path / 'in.pth')
    out = tmp_path / 'out.pth'
    transfer = convert_pretrained(
        tmp_path / 'in.pth', out, CONFIGS / f'fpt/{host}.py')
    assert {k.split('.')[1] for k in transfer.new if k.startswith('backbone')} == {
        'norm0', 'norm1', 'norm2'}
    cfg = Config.fromfile(CONFIGS / f'pretraining/{name}.py')
    cfg.model.backbone.init_cfg.checkpoint = str(out)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    found = backbone.state_dict()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(found[key], value), key
