"""The number of the neck's maps must be that of the detector's levels."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import train
from helpers.shipped_configs import build
from helpers.small_detrs import batch, make, small
from helpers.square_detector import DETECTOR
from helpers.synthetic_data import write_coco_squares
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from torch import nn

from fpt_plugin import PyramidLevelCheckHook
from fpt_plugin.commands.common import load_model
from fpt_plugin.engine.running import build_runner

SHIPPED = 'fpt/deformable-detr_r50_fpt_16xb2-50e_coco.py'
PLAIN = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'


def start(model):
    PyramidLevelCheckHook().before_run(SimpleNamespace(model=model))


@pytest.mark.parametrize('changes, words', [
    (dict(neck=dict(num_outs=5)), 'num_outs=5 in the neck and num_feature_levels=4'),
    (dict(neck=dict(num_outs=5), num_feature_levels=5),
     'num_levels=4 in the attention of the encoder and num_feature_levels=5'),
    (dict(encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
          neck=dict(num_outs=5), num_feature_levels=5),
     'num_levels=4 in the attention of the decoder and num_feature_levels=5'),
])
def test_numbers_are_compared_before_a_run(changes, words):
    wrapper = nn.Module()
    with torch.device('meta'):
        wrapper.module = build(small(SHIPPED, **changes))
    for given in (wrapper.module, wrapper):
        with pytest.raises(ValueError, match=f'got {words}'):
            start(given)
    with pytest.raises(ValueError, match=words), torch.device('meta'):
        load_model(small(SHIPPED, **changes))


@pytest.mark.parametrize('maps', [1, 3, 5])
def test_maps_of_a_neck_without_num_outs_are_counted(maps):
    """mmdet's ChannelMapper; a single map would give no error."""
    model = make(PLAIN, neck=dict(num_outs=4)).eval()
    start(model)
    data = batch(model, False)
    with torch.no_grad():
        assert len(model(**data, mode='predict')) == 2  # four fit
        forward = model.neck.forward
        model.neck.forward = lambda x: (forward(x) * 2)[:maps]
        with pytest.raises(ValueError, match=f'got {maps} maps of the neck and '
                           'num_feature_levels=4'):
            model(**data, mode='predict')


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize('again', [copy.deepcopy, saved_and_loaded])
@pytest.mark.parametrize('base, changes', [
    (PLAIN, {}), (SHIPPED, dict(type='PyramidMemoryDETR', encoder=None))])
def test_checked_models_can_be_copied_and_saved(base, changes, again):
    model = make(base, **changes).eval()
    before = hooks(model)
    for _ in range(3):  # several runs of one model
        start(model)
    assert hooks(model) == before + 1
    other = again(model)
    assert type(other) is type(model)
    start(other)
    assert hooks(other) == before + 1
    data = batch(model, False)
    with torch.no_grad():
        for a, b in zip(*(net(**data, mode='tensor') for net in (model, other))):
            assert torch.equal(a, b)
        other.neck.register_forward_hook(lambda neck, inputs, maps: maps[:2],
                                         prepend=True)
        with pytest.raises(ValueError, match='got 2 maps of the neck'):
            other(**data, mode='tensor')
        model(**data, mode='tensor')


@pytest.mark.parametrize('base, added', [
    ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 2),
    ('mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py', 0),
    ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', 1),
])
def test_hooks_of_other_models(base, added):
    with torch.device('meta'):
        model, _ = load_model(base, {'model.backbone.init_cfg': None})
    before = hooks(model)
    start(model)
    assert hooks(model) - before == added


LEVELS, LABELS = 'fpt_plugin.PyramidLevelCheckHook', 'fpt_plugin.SegLabelCheckHook'


@pytest.mark.parametrize('scope, given, found', [
    ('mmdet', None, [LEVELS]), ('mmdet', ['EMAHook'], ['EMAHook', LEVELS]),
    ('mmdet', [LEVELS], [LEVELS]), ('mmseg', None, [LEVELS, LABELS])])
def test_the_commands_add_it(scope, given, found, monkeypatch):
    monkeypatch.setattr(Runner, 'from_cfg', classmethod(lambda cls, cfg: cfg))
    cfg = ConfigDict(default_scope=scope, launcher='none',
                     custom_hooks=given and [dict(type=kind) for kind in given])
    assert [hook['type'] for hook in build_runner(cfg).custom_hooks] == found


def test_a_training_ends_before_its_first_step(tmp_path, monkeypatch):
    write_coco_squares(tmp_path / 'data', count=2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(DETECTOR)
    with pytest.raises(ValueError, match=r'strides \[4, 8, 16\] for 3 maps of strides'):
        train('config.py', 'work', 'model.bbox_head.anchor_generator.strides=[4,8,16]')
    assert not list((tmp_path / 'work').rglob('*.pth'))
