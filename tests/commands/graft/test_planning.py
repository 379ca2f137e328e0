"""FPT in the neck of any config."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.graft_detectors import BACKBONE, FPN, NECKS, config, retinanet, wrapped
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from fpt_plugin import FPT
from fpt_plugin.commands.graft import Options, graft, plan
from fpt_plugin.commands.graft.neck import PRESETS
from fpt_plugin.commands.graft.proof import prove
from fpt_plugin.commands.graft.sites import Maps, Refusal, Unbuildable, find_sites
from fpt_plugin.openmmlab.models import build_model

# New arguments of each neck.
WANTED = {
    'FPN': dict(type='FPT'),
    'FPN from C3': dict(type='FPT'),
    'PAFPN': dict(type='FPT', pyramid=dict(type='PAFPN')),
    'NASFPN': dict(type='FPT', pyramid=dict(type='NASFPN')),
    'HRFPN': dict(type='FPT', pyramid=dict(type='HRFPN'), num_levels=4),
    'ChannelMapper': dict(
        type='FPT', pyramid=dict(type='ChannelMapper'), num_levels=4),
    'scoped': dict(type='FPT', pyramid=dict(type='mmdet.PAFPN')),
}


def neck_of(cfg: Config) -> dict | list:
    return cfg.to_dict()['model']['neck']


@pytest.mark.parametrize('name', NECKS)
def test_each_neck_is_grafted_and_identical(name):
    cfg = retinanet(NECKS[name])
    before = copy.deepcopy(cfg.to_dict())
    new = graft(cfg)
    assert cfg.to_dict() == before
    if name in WANTED:
        assert neck_of(new) == {**NECKS[name], **WANTED[name]}
    else:
        assert neck_of(new) == [
            *NECKS[name],
            dict(type='FPT', pyramid=None, in_channels=16, out_channels=16,
                 num_levels=4)
        ]
        assert new.model.neck[-1].type == 'FPT'  # nested dicts are ConfigDicts
    proof = prove(cfg, new)
    assert proof.identical and proof.heads_compared and not proof.notes
    assert [c.what for c in proof.comparisons] == [
        'neck', 'bbox_head', 'predictions']


def one_map(neck: dict | None, stages: int = 2) -> Config:
    """A detector with one backbone map of 16 channels."""
    model = retinanet(neck).model.to_dict()
    width = 8 if stages == 2 else 16
    model['backbone'] = dict(
        BACKBONE, base_channels=width, stem_channels=width, num_stages=stages,
        strides=(1, 2)[:stages], dilations=(1, 1)[:stages],
        out_indices=(stages - 1, ))
    model['bbox_head']['anchor_generator']['strides'] = [4 * stages]
    return config(model)


def test_one_map():
    """FPT has only the Self-Transformer; the neck's own num_levels is kept."""
    bfp = dict(type='BFP', in_channels=16, num_levels=1, refine_level=0)
    for cfg, neck in (
        (one_map(None), dict(pyramid=None, in_channels=16)),
        (one_map(bfp, stages=1), dict(pyramid=bfp, in_channels=[16]))):
        new = graft(cfg)
        assert neck_of(new) == dict(
            type='SelfTransformerNeck', out_channels=16, num_levels=1, **neck)
        assert prove(cfg, new).identical
    with pytest.raises(Refusal, match='use SelfTransformerNeck'):
        graft(one_map(None), 'GroundingTransformerNeck')


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('name', ['FPN', 'PAFPN', 'FPN and BFP'])
def test_presets(name, preset):
    cfg = retinanet(NECKS[name])
    new = graft(cfg, preset=preset)
    neck = neck_of(new)[-1] if isinstance(neck_of(new), list) else neck_of(new)
    assert neck['preset'] == preset
    assert 'preset' not in str(neck_of(graft(cfg)))
    proof = prove(cfg, new)
    assert proof.identical and proof.effective and proof.heads_compared


@pytest.mark.parametrize('options', [
    *(dict(preset=preset) for preset in PRESETS),
    dict(levels=3, key_strides=[4, 2, 1], neck_options=dict(embed_channels=4))])
@pytest.mark.parametrize('neck, branch', [
    ('SelfTransformerNeck', 'self_transformers'),
    ('GroundingTransformerNeck', 'grounding_transformers'),
    ('RenderingTransformerNeck', 'rendering_transformers')
])
def test_necks_with_one_branch(neck, branch, options):
    """The branch exists even in 'light', which has only the Self-Transformer."""
    cfg = retinanet(FPN)
    new = graft(cfg, neck, **options)
    arguments = options if 'preset' in options else dict(
        num_levels=3, key_strides=[4, 2, 1], embed_channels=4)
    assert neck_of(new) == dict(FPN, type=neck, **arguments)
    module = build_model(new).neck
    assert type(module).__name__ == neck
    assert [len(getattr(module, name)) > 0 for name in FPT.OWN_CHILDREN[1:4]] == [
        name == branch for name in FPT.OWN_CHILDREN[1:4]]
    proof = prove(cfg, new)
    assert proof.identical and proof.effective


def test_custom_imports_are_appended():
    assert graft(retinanet(FPN)).custom_imports == dict(
        imports=['fpt_plugin'], allow_failed_imports=False)
    cfg = retinanet(FPN)
    cfg.custom_imports = dict(imports=['json'], allow_failed_imports=True)
    once = graft(cfg)
    assert once.custom_imports == dict(
        imports=['json', 'fpt_plugin'], allow_failed_imports=True)
    cfg.custom_imports = dict(imports='fpt_plugin')
    assert graft(cfg).custom_imports == dict(imports='fpt_plugin')


# ------------------------------------------------------------------- wrappers


def test_a_detector_inside_a_wrapper():
    cfg = wrapped(retinanet(FPN))
    new = graft(cfg)
    assert new.model.detector.neck == dict(FPN, type='FPT')
    proof = prove(cfg, new)
    assert proof.identical
    assert {c.what.partition('.')[0] for c in proof.comparisons} == {
        'student', 'teacher'}


def test_a_part_that_takes_no_graft_is_not_changed():
    """A tracker's detector has maps, and its appearance network has vectors."""
    appearance = dict(
        backbone=BACKBONE, neck=dict(type='GlobalAveragePooling', kernel_size=1))
    cfg = config(dict(detector=retinanet(FPN).model.to_dict(),
                      reid=appearance))
    made = plan(cfg, Options())
    assert made.cfg.model.detector.neck.type == 'FPT'
    assert made.cfg.model.reid == cfg.model.reid
    assert [site.name for site in made.sites] == ['model.detector']
    assert len(made.notes) == 2 and 'not changed' in made.notes[1]
    assert 'model.reid' in made.notes[1]


def test_sites_in_lists_and_scopes():
    inner = dict(backbone=dict(type='A'), neck=dict(type='B'))
    found = find_sites(
        dict(models=[dict(inner, _scope_='mmseg'), dict(x=inner)]), 'mmdet')
    assert [(site.name, site.scope) for site in found] == [
        ('model.models[0]', 'mmseg'), ('model.models[1].x', 'mmdet')]


# ----------------------------------------------------------------- refusals


@MODELS.register_module(force=True)
class UpsideDown(torch.nn.Module):
    """Returns maps of equal channels from coarse to fine."""

    def forward(self, maps):
        return tuple(x[:, :4] for x in reversed(maps))


@pytest.mark.parametrize('change, words', [
    (dict(neck=None), r'backbone.*\[8, 16, 32, 64\].*equal channels'),
    (dict(neck=dict(type='SSDNeck', in_channels=(32, 64),
                    out_channels=(32, 64, 16), level_strides=(2, ),
                    level_paddings=(1, )),
          backbone=dict(BACKBONE, out_indices=(2, 3))),
     r'SSDNeck.*\[32, 64\].*levels=1'),
    (dict(neck=dict(FPN, type='FPT')), 'already'),
    (dict(neck=dict(type='GlobalAveragePooling')), r'maps \(B, C, H, W\)'),
    (dict(neck=dict(type='UpsideDown')), 'from coarse to fine'),
])
def test_refusals_say_what_is_needed(change, words):
    model = retinanet(FPN).model.to_dict()
    model.update(change)
    with pytest.raises(Refusal, match=words):
        graft(config(model))


def test_inferred_levels():
    """In Feature2Pyramid of a ViT, no map has the size of a backbone map."""
    maps = Maps(inputs=((1, 8, 16, 16), ) * 4,
                outputs=tuple((1, 8, 2**i, 2**i) for i in (6, 5, 4, 3)))
    assert maps.inferred_levels == 4
    maps = Maps(inputs=((1, 8, 32, 32), (1, 8, 16, 16)),
                outputs=tuple((1, 8, 2**i, 2**i) for i in (5, 4, 3)))
    assert maps.inferred_levels == 2


def test_a_backbone_for_one_image_size():
    """Such as BEiT with its position bias."""

    @MODELS.register_module(force=True)
    class OneSize(torch.nn.Module):

        def __init__(self, img_size):
            super().__init__()
            self.img_size = img_size
            self.conv = torch.nn.Conv2d(3, 16, 8, 8)

        def forward(self, x):
            if x.shape[2:] != self.img_size:
                raise RuntimeError('images of another size')
            return (self.conv(x), )

    model = retinanet(None).model.to_dict()
    model['backbone'] = dict(type='OneSize', img_size=(72, 72))
    model['bbox_head']['anchor_generator']['strides'] = [8]
    cfg = config(model)
    new = graft(cfg)
    assert neck_of(new)['type'] == 'SelfTransformerNeck'
    assert prove(cfg, new, sizes=((64, 64), (72, 72))).identical


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize('options, error, words', [
    (dict(neck='FTP'), ValueError, "SelfTransformerNeck.*'FTP'"),
    (dict(levels=6), ValueError, 'levels.*5.*6'),
    (dict(levels=0), ValueError, 'levels.*0'),
    (dict(levels='2'), TypeError, "levels.*'2'"),
    (dict(key_strides=[2, 1]), ValueError, r'key_strides.*\(2, 1\)'),
    (dict(preset='paper'), ValueError, "'light'.*'full'.*'paper'"),
    (dict(preset='full', neck_options=dict(preset='paper')), ValueError,
     "'full'.*'paper'.*exclude"),
    (dict(neck_options=dict(preset='large')), ValueError, "preset.*'large'"),
    (dict(neck_options=dict(embed=3)), TypeError, 'embed'),
    (dict(neck_options=dict(pyramid=None)), ValueError, 'pyramid'),
    (dict(backbone='lambda-resnet51'), ValueError, '-resnet50.*-resnet51'),
    (dict(backbone='lambda-resnet50', lambda_plugins=True), ValueError, 'exclude'),
])
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        graft(retinanet(FPN), **options)


def test_bad_configs():
    with pytest.raises(TypeError, match='Config'):
        graft(dict(model=dict()))
    with pytest.raises(Refusal, match='must set model'):
        graft(Config(dict(default_scope='mmdet')))
    with pytest.raises(Refusal, match='no dict with a backbone'):
        graft(config(dict(type='SAN', image_encoder=dict(type='ViT'))))
    with pytest.raises(Unbuildable, match='model'):
        graft(retinanet(dict(type='NeckOfAnotherPackage')))


def test_a_neck_that_does_not_run_on_this_machine():
    """Such as FPN_CARAFE, which needs a GPU: its declared maps are used."""
    init_default_scope('mmdet')
    fpn = MODELS.build(dict(FPN, type='mmdet.FPN')).__class__

    @MODELS.register_module(force=True)
    class OnlyElsewhere(fpn):

        def forward(self, inputs):
            raise RuntimeError('no such operator on this machine')

    cfg = retinanet(dict(FPN, type='OnlyElsewhere', start_level=1))
    assert build_model(graft(cfg)).neck.num_levels == 3
    with pytest.raises(Unbuildable, match='the plain model does not run'):
        prove(cfg, graft(cfg))
