"""FPT as the encoder: the neck's pyramid is the memory, the rest is mmdet's."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from helpers.small_detrs import batch, make, small
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint, set_random_seed

PLAIN = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
FPT_ENCODER = 'fpt/deformable-detr_r50_fpt-encoder_16xb2-50e_coco.py'
DINO = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
DDQ = 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py'
NECK = dict(type='FPT', preset='full', pyramid=dict(type='ChannelMapper'),
            num_levels=4)


@pytest.fixture(params=[(False, False), (True, False), (True, True)],
                ids=['plain', 'refine', 'two-stage'])
def pair(request):
    """The detector, and mmdet's with an encoder that is the identity."""
    refine, two_stage = request.param
    flags = dict(with_box_refine=refine, as_two_stage=two_stage)
    ours = make(FPT_ENCODER, **flags)
    with torch.no_grad():  # the maps are no longer the pyramid's
        for fusion in ours.neck.fusions:
            fusion.out_conv.weight.normal_(std=0.05)
    plain = make(PLAIN, neck=NECK, **flags)
    keys = plain.load_state_dict(ours.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert {key.split('.')[0] for key in keys.missing_keys} == {'encoder'}
    plain.encoder.forward = lambda query, **_: query
    return ours, plain


def check_gradients(model):
    """Require a finite loss, and a gradient of each parameter."""
    total, _ = model.parse_losses(model.train()(**batch(model), mode='loss'))
    total.backward()
    assert total.isfinite()
    assert [key for key, p in model.named_parameters()
            if p.requires_grad and p.grad is None] == []


def test_the_memory_is_the_pyramid(pair):
    """Level by level, pixels in raster order."""
    ours, _ = pair
    data = batch(ours.eval(), False)
    with torch.no_grad():
        maps = ours.extract_feat(data['inputs'])
        given, _ = ours.pre_transformer(maps, data['data_samples'])
        memory = ours.forward_encoder(**given)
    assert [tuple(x.shape[2:]) for x in maps] == [(10, 12), (5, 6), (3, 3), (2, 2)]
    flat = [x[:, :, row, column] for x in maps
            for row in range(x.shape[2]) for column in range(x.shape[3])]
    assert torch.equal(memory['memory'], torch.stack(flat, dim=1))
    assert memory['memory'].std() > 0
    assert memory['memory_mask'].any() and not memory['memory_mask'].all()


def test_losses_and_predictions_are_mmdets(pair):
    losses, boxes = [], []
    for model in pair:
        set_random_seed(1)
        losses.append(model.train()(**batch(model), mode='loss'))
        padded, full = batch(model.eval(), False), batch(model, False)
        for sample in full['data_samples']:
            sample.set_metainfo(dict(img_shape=(80, 96)))
        with torch.no_grad():
            boxes.append([*model(**padded, mode='predict'),
                          *model(**full, mode='predict')])
    assert losses[0].keys() == losses[1].keys() and losses[0]
    assert ('enc_loss_cls' in losses[0]) == pair[0].as_two_stage
    for key, loss in losses[1].items():
        assert torch.equal(losses[0][key], loss) and loss.isfinite(), key
    for a, b in zip(*boxes):
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert torch.equal(a.pred_instances.scores, b.pred_instances.scores)
        assert len(b.pred_instances.scores) == 10


def test_every_parameter_learns(pair):
    ours, _ = pair
    check_gradients(ours)
    frozen = {key for key, p in ours.named_parameters() if not p.requires_grad}
    assert [key for key in frozen if not key.startswith('backbone')] == [
        'level_embed']
    for branches in (ours.neck.self_transformers,
                     ours.neck.grounding_transformers,
                     ours.neck.rendering_transformers):
        assert all(p.grad.any() for p in branches.parameters()
                   if p.dim() == 4), branches


@pytest.mark.parametrize('base, detector', [(DINO, 'DINO'),
                                            (DINO, 'mmdet.DINO'),
                                            (DDQ, 'DDQDETR')])
def test_other_detectors_of_the_family(base, detector):
    model = make(base, type='PyramidMemoryDETR', detector=detector, encoder=None,
                 neck=NECK)
    assert isinstance(model, MODELS.get(f'mmdet.{detector.split(".")[-1]}'))
    check_gradients(model)
    with torch.no_grad():
        samples = model.eval()(**batch(model, False), mode='predict')
    assert all(len(s.pred_instances.scores) for s in samples)


def test_any_neck_works():
    """The baseline of FPT as the encoder."""
    model = make(PLAIN, type='PyramidMemoryDETR', encoder=None).eval()
    assert type(model.neck).__name__ == 'ChannelMapper'
    with torch.no_grad():
        assert len(model(**batch(model, False), mode='predict')) == 2


def test_a_checkpoint_of_the_plain_detector(tmp_path, messages):
    plain, ours = make(PLAIN), make(FPT_ENCODER)
    path = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict=plain.state_dict(), meta={}), path)
    fresh = copy.deepcopy(ours.neck.fusions.state_dict())
    load_checkpoint(ours, path, map_location='cpu')
    state = ours.state_dict()
    for key, value in plain.state_dict().items():
        if not key.startswith('encoder.'):
            key = key.replace('neck.', 'neck.pyramid.')
            assert torch.equal(state.pop(key), value), key
    assert all(key.startswith('neck.') for key in state)
    assert all(torch.equal(ours.neck.fusions.state_dict()[key], value)
               for key, value in fresh.items())
    tensors = plain.encoder.state_dict()
    assert len(tensors) == 16
    numbers = sum(p.numel() for p in plain.encoder.parameters())
    report, = (text for text in messages if 'left out' in text)
    assert report.startswith(f'16 tensors ({numbers:,} numbers) of the '
                             'checkpoint are left out')
    assert 'encoder.layers.0.self_attn.sampling_offsets.weight' in report


def test_its_own_checkpoint(tmp_path, messages):
    ours, other = make(FPT_ENCODER), make(FPT_ENCODER)
    torch.save(ours.state_dict(), tmp_path / 'ours.pth')
    load_checkpoint(other, str(tmp_path / 'ours.pth'), strict=True)
    for a, b in zip(ours.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)
    assert messages == []


def test_strict_loading_of_a_plain_checkpoint_fails():
    with pytest.raises(RuntimeError, match='Unexpected key.*encoder.layers.0'):
        make(FPT_ENCODER).load_state_dict(make(PLAIN).state_dict())


@pytest.mark.parametrize('changes, error, words', [
    (dict(encoder=dict(num_layers=6)), ValueError, 'encoder must be None'),
    (dict(neck=None), ValueError, 'neck must be a config, got None'),
    (dict(decoder=None), ValueError, 'decoder must be a config, got None'),
    (dict(detector='NoSuchDETR'), KeyError, "got 'NoSuchDETR'"),
    (dict(detector='FasterRCNN'), TypeError,
     "mmdet.DeformableDETR or a subclass of it, got 'FasterRCNN'"),
    (dict(detector='FPT'), TypeError, "got 'FPT'"),
    (dict(detector='GroundingDINO'), TypeError, 'reads text too'),
    (dict(num_feature_levels=3), ValueError,
     'num_outs=4 in the neck and num_feature_levels=3'),
    (dict(num_feature_levels=5), ValueError,
     'num_outs=4 in the neck and num_feature_levels=5'),
])
def test_bad_arguments(changes, error, words):
    cfg = small(FPT_ENCODER)
    init_default_scope(cfg.default_scope)
    cfg.model.update(changes)
    with pytest.raises(error, match=words), torch.device('meta'):
        MODELS.build(cfg.model)


def test_the_decoder_must_have_the_same_number_of_levels():
    cfg = small(FPT_ENCODER, neck=dict(num_outs=5), num_feature_levels=5)
    init_default_scope(cfg.default_scope)
    with pytest.raises(ValueError, match='num_levels=4 in the attention of the '
                       'decoder and num_feature_levels=5'):
        MODELS.build(copy.deepcopy(cfg.model))
    cfg.model.decoder.layer_cfg.cross_attn_cfg.num_levels = 5
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        assert len(model.eval()(**batch(model, False), mode='predict')) == 2


def test_without_mmdet():
    """The package can be imported; building the detector names mmdet."""
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', """
import sys
sys.modules['mmdet'] = None
import fpt_plugin
fpt_plugin.PyramidMemoryDETR(neck={}, decoder={})
"""], capture_output=True, text=True)
    assert 'mmdet installed, got' in result.stderr.splitlines()[-1]


def test_wrong_maps_are_named():
    """For necks without num_outs or out_channels."""
    model = make(FPT_ENCODER)
    data = batch(model, False)
    maps = model.extract_feat(data['inputs'])
    with pytest.raises(ValueError, match='3 maps of the neck and '
                       'num_feature_levels=4'):
        model.pre_transformer(maps[:3], data['data_samples'])
    narrow = [x[:, :32] for x in maps]
    with pytest.raises(ValueError, match='embed_dims=64 .*got \\[32'):
        model.pre_transformer(narrow, data['data_samples'])
