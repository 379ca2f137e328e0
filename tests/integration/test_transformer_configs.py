"""Configs of FPT over transformers: weights, and image sizes."""

from __future__ import annotations

import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import official_weights
from helpers.shipped_configs import ALL, CONFIGS, build, load
from helpers.train_step import train_step
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

# Backbones as in file names: their weights, the parameters of the published
# classifier in millions, and the width that its last layer reads.
BACKBONES = {
    'swin-t-p4-w7': ('swin_tiny_patch4_window7_224', 28.3, 768),
    'swin-s-p4-w7': ('swin_small_patch4_window7_224', 49.6, 768),
    'pvt-t': ('pvt_tiny', 13.2, 512),
    'pvt-s': ('pvt_small', 24.5, 512),
    'pvtv2-b0': ('pvt_v2_b0', 3.7, 256),
    'pvtv2-b2': ('pvt_v2_b2', 25.4, 512),
    'vit-b16': ('vit_base_patch16_224', 86.6, 768),
    'deit-s16': ('deit_small_patch16_224', 22.1, 384),
}
TRANSFORMERS = {
    name: kind for name in ALL for kind in BACKBONES
    if f'_{kind}_' in name and not name.startswith('pretraining/')}
SWIN = 'fpt/mask-rcnn_swin-t-p4-w7_fpt_amp-ms-crop-3x_coco.py'
PVT = 'fpt/retinanet_pvt-t_fpt_1x_coco.py'
PVT_V2 = 'fpt/retinanet_pvtv2-b0_fpt_1x_coco.py'
DEIT = 'fpt/mask-rcnn_deit-s16_fpt_8xb8-amp-lsj-100e_coco.py'
SWIN_MMSEG = 'fpt/sem-fpn_swin-t-p4-w7_fpt_4xb4-160k_ade20k-512x512.py'
PVT_V2_MMSEG = 'fpt/sem-fpn_pvtv2-b0_fpt_4xb4-160k_ade20k-512x512.py'
UPERNET = 'fpt/upernet_swin-t-p4-w7_fpt_8xb2-160k_ade20k-512x512.py'
DEIT_UPERNET = 'fpt/upernet_deit-s16_fpt_8xb2-160k_ade20k-512x512.py'
DEIT_MMSEG = 'fpt/sem-fpn_deit-s16_fpt_8xb2-160k_ade20k-512x512.py'

# Settings of a small backbone, and the channels of its maps.
SMALL_SWIN = dict(embed_dims=12, depths=[2, 2, 2, 2],
                  num_heads=[1, 2, 3, 4]), [12, 24, 48, 96]
SMALL_PVT = dict(embed_dims=8, num_layers=[1, 2, 1, 1]), [8, 16, 40, 64]
SMALL_VIT = dict(embed_dims=32, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3),
                 img_size=(64, 64)), [32] * 4
SMALL = {
    **dict.fromkeys((SWIN, SWIN_MMSEG, UPERNET), SMALL_SWIN),
    **dict.fromkeys((PVT, PVT_V2, PVT_V2_MMSEG), SMALL_PVT),
    **dict.fromkeys((DEIT, DEIT_UPERNET, DEIT_MMSEG), SMALL_VIT),
}


def small(name: str) -> Config:
    """Read a shipped config with a small backbone of the same kind."""
    cfg = load(name)
    backbone, channels = SMALL[name]
    cfg.model.backbone.update(backbone)
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_head.fc_out_channels = 32
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.train_cfg.rcnn.sampler.num = 16
    if cfg.model.get('decode_head', {}).get('type') == 'UPerHead':
        cfg.model.decode_head.channels = 32
    neck = cfg.model.neck
    neck.in_channels = channels
    if isinstance(neck.get('pyramid'), list):
        rescaling, mapping = neck.pyramid
        rescaling.embed_dim = channels[0]
        mapping.in_channels = channels
    return cfg


def backbone_of(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model.backbone)


@pytest.mark.parametrize('name', TRANSFORMERS)
def test_backbone_and_weights_fit_the_file_name(name):
    weights, published, width = BACKBONES[TRANSFORMERS[name]]
    model = Config.fromfile(CONFIGS / name).model
    init_cfg = model.backbone.get('init_cfg') or {}
    assert weights in (init_cfg.get('checkpoint') or model.pretrained)
    cfg = load(name)
    count = count_parameters(cfg.default_scope, str(cfg.model.backbone))
    assert (count + 1000 * (width + 1)) / 1e6 == pytest.approx(published, abs=.2)


@cache
def count_parameters(scope: str, backbone: str) -> int:
    """Count without position embeddings, which depend on the size of the images.

    Args:
        scope: The library.
        backbone: The config as text. Many configs have the same backbone.
    """
    cfg = Config.fromstring(
        f'default_scope = {scope!r}\nmodel = dict(backbone={backbone})', '.py')
    return sum(p.numel() for key, p in backbone_of(cfg).named_parameters()
               if key != 'pos_embed')


# ------------------------------------------------------------------- weights


def drawn(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Draw values for each of its tensors except indices."""
    return {key: torch.rand_like(value) if value.is_floating_point() else value
            for key, value in backbone.state_dict().items()}


def convert(tool: str, source: Path, out: Path, monkeypatch) -> None:
    """Run a converter of mmseg on a command line."""
    import mmseg
    path = Path(mmseg.__path__[0]) / '.mim/tools/model_converters' / f'{tool}.py'
    monkeypatch.setattr(sys, 'argv', [str(path), str(source), str(out)])
    runpy.run_path(str(path), run_name='__main__')


def assert_loads(cfg: Config, checkpoint: Path, wanted: dict) -> None:
    """Load by init_cfg: wanted tensors have these values, others do not change."""
    backbone = cfg.model.backbone
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    loaded = backbone_of(cfg)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    loaded.init_weights()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, wanted.get(key, before[key])), key
    moved = [key for key in wanted if not torch.equal(wanted[key], before[key])]
    assert len(moved) > 0.9 * len(wanted)


@pytest.mark.parametrize('name', [SWIN, SWIN_MMSEG])
def test_official_swin_loads(name, tmp_path, monkeypatch):
    """mmdet converts while it loads; mmseg has a tool for it."""
    cfg = small(name)
    values = drawn(backbone_of(cfg))
    source = tmp_path / 'swin.pth'
    torch.save(dict(model=official_weights.swin(values)), source)
    if cfg.default_scope == 'mmseg':
        convert('swin2mmseg', source, tmp_path / 'converted.pth', monkeypatch)
        source = tmp_path / 'converted.pth'
    wanted = {k: v for k, v in values.items() if not re.match(r'norm\d', k)}
    assert len(values) - len(wanted) == 8
    assert_loads(cfg, source, wanted)


@pytest.mark.parametrize('name', [PVT, PVT_V2, PVT_V2_MMSEG])
def test_official_pvt_loads(name, tmp_path):
    cfg = small(name)
    values = drawn(backbone_of(cfg))
    torch.save(official_weights.pvt(values), tmp_path / 'pvt.pth')
    assert any('pos_embed' in key for key in values) == (name == PVT)
    assert_loads(cfg, tmp_path / 'pvt.pth', values)


@pytest.mark.parametrize('name', [DEIT, DEIT_MMSEG])
@pytest.mark.parametrize('side', [4, 6])
def test_official_deit_loads(name, side, tmp_path, monkeypatch):
    """Position embeddings are resized to the grid of the config's images."""
    cfg = small(name)
    values = drawn(backbone_of(cfg))
    official = official_weights.deit(values, side)
    torch.save(dict(model=official), tmp_path / 'deit.pth')
    convert('vit2mmseg', tmp_path / 'deit.pth', tmp_path / 'out.pth', monkeypatch)
    positions = official['pos_embed']
    values['pos_embed'] = positions if side == 4 else resized(positions, side, (4, 4))
    assert_loads(cfg, tmp_path / 'out.pth', values)


def resized(positions: torch.Tensor, side: int, size: tuple) -> torch.Tensor:
    token, grid = positions[:, :1], positions[:, 1:]
    grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size, mode='bicubic', align_corners=False)
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], 1)


# --------------------------------------------------------------------- sizes


@pytest.mark.parametrize('name', SMALL)
def test_trains_a_step(name):
    train_step(small(name))


@pytest.mark.parametrize('name', [SWIN, PVT, PVT_V2, DEIT, PVT_V2_MMSEG])
@torch.no_grad()
def test_any_size(name):
    """The sides are no multiples of patches, windows and strides."""
    model = build(small(name)).eval()
    model.init_weights()
    nn.init.normal_(model.neck.fusions[0].out_conv.weight, std=.1)
    maps = model.extract_feat(torch.randn(2, 3, 97, 131))
    assert all(x.isfinite().all() and x.std() > 0 for x in maps)
    sides = [x.shape[2:] for x in maps[:model.neck.num_levels]]
    assert len(sides) in (3, 4)
    assert all(abs(fine - 2 * coarse) <= 1
               for a, b in zip(sides, sides[1:]) for fine, coarse in zip(a, b))


@torch.no_grad()
def test_vit_segmentor_at_any_size():
    """Images are padded at the right and bottom to multiples of 32, then cropped."""
    from mmseg.structures import SegDataSample
    model = build(small(DEIT_MMSEG)).eval()
    image = torch.randint(256, (3, 75, 131))
    sample = SegDataSample(metainfo=dict(img_shape=(75, 131), ori_shape=(75, 131)))
    found, = model.test_step(dict(inputs=[image], data_samples=[sample]))
    logits = found.seg_logits.data
    assert logits.shape == (150, 75, 131)
    preprocessor = model.data_preprocessor
    normed = (image.flip(0) - preprocessor.mean) / preprocessor.std
    padded = F.pad(normed[None], (0, 29, 0, 21))
    expected = model.encode_decode(padded, [dict(img_shape=(96, 160))])
    assert torch.equal(logits, expected[0, :, :75, :131])
    assert logits.std() > 0


def test_vit_detectors_see_images_of_one_size():
    """The size of the backbone, of padding in training and of resizing in tests."""
    cfg = load(DEIT)
    size = cfg.model.backbone.img_size
    augment, = cfg.model.data_preprocessor.batch_augments
    assert tuple(size) == tuple(augment.size) == (1024, 1024)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        scale, = (step.scale for step in loader.dataset.pipeline
                  if step.type == 'Resize')
        assert tuple(scale) == size
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
