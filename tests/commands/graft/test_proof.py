"""The proof of a graft finds differences."""

from __future__ import annotations

import pytest
import torch
from helpers.graft_detectors import (
    BACKBONE,
    CHANNELS,
    FPN,
    NECKS,
    config,
    retinanet,
    wrapped,
)
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from fpt_plugin.commands.common import load_weights
from fpt_plugin.commands.graft import graft
from fpt_plugin.commands.graft.proof import _difference, build_pair, compare, prove
from fpt_plugin.commands.graft.sites import Unbuildable
from fpt_plugin.commands.graft.weights import (
    ZerosForRandom,
    calibrate,
    initialise_grafts,
    randomise,
    share_weights,
)
from fpt_plugin.openmmlab.models import build_model


@pytest.fixture
def pair():
    cfg = retinanet(FPN)
    return build_model(cfg), build_model(graft(cfg))


def by_name(proof):
    return {c.what: c for c in proof.comparisons}


def test_a_fusion_that_does_not_start_at_zero(pair):
    before, after = pair
    with torch.no_grad():
        after.neck.fusions[2].out_conv.weight[0, 0, 1, 1] = 1e-3
    proof = compare(before, after)
    assert not proof.identical
    found = by_name(proof)
    assert not found['neck'].equal and 0 < found['neck'].difference < 1
    assert not found['bbox_head'].equal
    cfg = retinanet(FPN)
    new = graft(cfg, neck_options=dict(fusion='concat'))
    assert not prove(cfg, new).identical


def test_a_head_that_differs(pair):
    before, after = pair
    after.bbox_head.retina_cls.register_forward_hook(
        lambda module, args, out: out + 1e-6)
    found = by_name(compare(before, after))
    assert found['neck'].equal and not found['bbox_head'].equal


def test_a_graft_that_no_head_reads(pair):
    """It stays identical, because it is never trained."""
    assert compare(*pair).effective is True
    cfg = retinanet(FPN)
    cfg.model.bbox_head.anchor_generator.strides = [32, 64]
    new = graft(cfg, levels=2)
    models = build_model(cfg), build_model(new)
    for model in models:
        extract = model.extract_feat
        model.extract_feat = lambda x, extract=extract: extract(x)[-2:]
    proof = compare(*models)
    assert proof.identical and proof.effective is False


def test_random_weights():
    cfg = retinanet(NECKS['FPN from C3'])
    model, fresh = build_model(cfg), build_model(cfg)
    randomise(model)
    for key, value in fresh.state_dict().items():
        if value.is_floating_point():
            assert not torch.equal(model.state_dict()[key], value), key
    model.eval()
    statistics = model.backbone.layer4[1].bn2.running_var.clone()
    images = 3 + 5 * torch.randn(2, 3, 64, 64)
    calibrate(model, model, images)
    assert not torch.equal(model.backbone.layer4[1].bn2.running_var, statistics)
    assert not any(m.training for m in model.modules())
    # Features keep a scale at which single bits can differ.
    for x in model.extract_feat(images):
        assert 0.01 < x.std() < 100


def test_grafts_are_initialised_after_building_with_zeros():
    cfg = graft(retinanet(FPN))
    with ZerosForRandom():
        model = build_model(cfg)
    assert not any(p.any() for p in model.parameters() if p.dim() > 1)
    initialise_grafts(model)
    assert nn.Conv2d(1, 1, 1).weight.all()
    assert not model.backbone.layer1[0].conv1.weight.any()
    assert model.neck.self_transformers['0_0'].query.weight.all()
    assert not model.neck.fusions[0].out_conv.weight.any()


def test_constant_outputs_are_no_proof(pair):
    before, after = pair
    zeros = {k: torch.zeros_like(v) for k, v in before.state_dict().items()}
    proof = compare(before, after, zeros)
    assert not any(c.informative for c in proof.comparisons if c.what == 'neck')
    assert all(c.equal for c in proof.comparisons) and not proof.identical


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize('a, b, want', [
    ([1., NAN], [1., NAN], 0),
    ([1., NAN], [NAN, 1.], INF),
    ([1., NAN], [1.5, NAN], 0.5),
    ([1., NAN], [1., 2.], INF),
    ([INF, 1.], [INF, 1.], 0),
    ([INF, 1.], [-INF, 1.], INF),
    ([1.], [1., 2.], INF),
])
def test_difference(a, b, want):
    assert _difference(torch.tensor(a), torch.tensor(b)) == want
    assert _difference(torch.tensor(a), torch.tensor(a).double()) == INF


@pytest.mark.parametrize('wrap', [lambda cfg: cfg, wrapped])
def test_a_checkpoint_of_the_detector(wrap):
    """A wrapper loads it for student and teacher."""
    cfg = retinanet(FPN)
    trained = build_model(cfg)
    randomise(trained, seed=5)
    before, after = build_pair(wrap(cfg), graft(wrap(cfg)))
    proof = compare(before, after, trained.state_dict())
    assert proof.identical and proof.effective
    for part in (after.student, after.teacher) if wrap is wrapped else (after, ):
        assert torch.equal(part.neck.pyramid.fpn_convs[0].conv.weight,
                           trained.neck.fpn_convs[0].conv.weight)


def segmentor(classes: int) -> Config:
    """Return an FCN with an auxiliary head; both have classification layers."""
    head = dict(type='FCNHead', channels=8, num_convs=1, num_classes=classes,
                norm_cfg=dict(type='BN'))
    cfg = config(dict(
        type='EncoderDecoder',
        backbone=dict(BACKBONE, type='ResNetV1c', strides=(1, 2, 1, 1),
                      dilations=(1, 1, 2, 4)),
        neck=dict(type='UFP', in_channels=CHANNELS, out_channels=8,
                  norm_cfg=dict(type='BN')),
        decode_head=dict(head, in_channels=8, in_index=0),
        auxiliary_head=dict(head, in_channels=8, in_index=1),
        test_cfg=dict(mode='whole')))
    cfg.default_scope = 'mmseg'
    return cfg


def detector_of(classes: int) -> Config:
    cfg = retinanet(FPN)
    cfg.model.bbox_head.num_classes = classes
    return cfg


@pytest.mark.parametrize('of, wrap', [
    (detector_of, lambda cfg: cfg), (segmentor, lambda cfg: cfg),
    (detector_of, wrapped)])
def test_a_checkpoint_of_other_classes(of, wrap):
    """All tensors that fit are loaded and compared."""
    trained = build_model(of(4))
    randomise(trained)
    plain = wrap(of(3))
    before, after = build_pair(plain, graft(plain))
    proof = compare(before, after, trained.state_dict(), 'x.pth')
    assert proof.identical and proof.effective and proof.heads_compared
    assert any('other classes' in note for note in proof.notes)
    for name, value in before.state_dict().items():
        source = name.removeprefix('student.').removeprefix('teacher.')
        given = trained.state_dict()[source]
        assert torch.equal(value, given) or value.shape != given.shape \
            or name.endswith('num_batches_tracked'), name


def test_weights_for_other_commands():
    """Keys outside the model are returned; other classes are refused."""
    model = build_model(detector_of(4))
    state_dict = {**model.state_dict(), 'ema_conv1_weight': torch.zeros(1)}
    assert load_weights(model, state_dict, 'x.pth') == (['ema_conv1_weight'], '')
    with pytest.raises(ValueError, match=(
            r'other classes.*retina_cls.*\[4, 16,.*\[3, 16,')):
        load_weights(build_model(detector_of(3)), state_dict, 'x.pth')


@pytest.mark.parametrize('missing, others, words', [
    ('bbox_head.retina_cls.bias', {}, 'missing.*bbox_head.retina_cls.bias'),
    (None, {'neck.downsample_convs.0.conv.weight': (1, )},
     'no place.*downsample_convs'),
    (None, {'backbone.conv1.weight': (2, 3, 7, 7)},
     r'backbone.conv1.weight.*\[2, 3, 7, 7\]'),
    (None, {'neck.fpn_convs.0.conv.bias': (8, ), 'bbox_head.retina_cls.bias': (9, )},
     r'neck.fpn_convs.0.conv.bias.*\[8\]'),
])
def test_a_checkpoint_of_another_model_is_refused(pair, missing, others, words):
    state_dict = {k: v for k, v in pair[0].state_dict().items() if k != missing}
    state_dict.update((key, torch.zeros(shape)) for key, shape in others.items())
    with pytest.raises(ValueError, match=f'x.pth is a checkpoint of another.*{words}'):
        compare(*pair, state_dict, 'x.pth')


def test_weights_of_another_neck_are_refused():
    cfg, other = retinanet(NECKS['PAFPN']), retinanet(FPN)
    with pytest.raises(ValueError, match='do not all load'):
        share_weights(build_model(cfg), build_model(graft(other)))


def test_models_that_do_not_build():
    cfg = retinanet(FPN)
    broken = graft(cfg)
    broken.model.neck.num_levels = 9
    with pytest.raises(RuntimeError, match='the grafted model does not build'):
        prove(cfg, broken)
    other = graft(cfg)
    other.model.neck.key_strides = [1, 1, 1, 999]
    plain = retinanet(FPN)
    plain.model.type = 'DetectorOfAnotherPackage'
    with pytest.raises(Unbuildable, match='DetectorOfAnotherPackage'):
        prove(plain, other)
    with pytest.raises(Unbuildable, match='no part with a backbone'):
        prove(config(dict(type='FPN', in_channels=[1], out_channels=1,
                          num_outs=1)), graft(cfg))


def test_a_head_that_does_not_run_in_testing():
    """The neck is compared all the same."""
    head = build_model(retinanet(FPN)).bbox_head.__class__

    @MODELS.register_module(force=True)
    class HeadForTraining(head):

        def forward(self, x):
            raise NotImplementedError('no outputs in testing')

    cfg = retinanet(FPN)
    cfg.model.bbox_head.type = 'HeadForTraining'
    proof = prove(cfg, graft(cfg))
    assert proof.identical and not proof.heads_compared
    assert proof.effective is None
    assert 'no outputs in testing' in ' '.join(proof.notes)
