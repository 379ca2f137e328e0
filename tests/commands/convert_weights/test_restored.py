"""Weights of RestorationPretrainer in detectors and segmentors of both libraries."""

from __future__ import annotations

import pytest
import torch
from helpers.graft_detectors import retinanet
from helpers.restorers import batch_of, detector_parts, restorer, segmentor_parts
from helpers.shipped_configs import CONFIGS
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from fpt_plugin.commands.convert_weights.command import main, parser
from fpt_plugin.commands.convert_weights.pretrained import convert_pretrained
from fpt_plugin.commands.study.running import Study


def segmentor(neck='FPT'):
    return Config(dict(
        default_scope='mmseg', model=dict(type='EncoderDecoder',
                                          **segmentor_parts(neck))))


def detector(neck='FPT'):
    cfg = retinanet(None)
    cfg.model.bbox_head.update(in_channels=8, feat_channels=8)
    del cfg.model['data_preprocessor']
    cfg.model.update(detector_parts(neck))
    return cfg


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def trained(model, steps=2):
    """Train a model for some steps, so that no weight is zero."""
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(steps):
        inputs, samples = batch_of((64, 64), batch=3)
        optimizer.zero_grad()
        model(inputs, samples, mode='loss')['loss'].backward()
        optimizer.step()
    return model


@pytest.fixture
def save(tmp_path):
    def write(model, name='in.pth'):
        torch.save(dict(state_dict=model.state_dict()), tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize('neck', ['FPN', 'FPT', 'UFP', 'UFP-FPT'])
@pytest.mark.parametrize('parts, into', [
    (detector_parts, detector), (segmentor_parts, segmentor)])
def test_every_key_of_the_parts_is_transferred(parts, into, neck, save, tmp_path):
    model, cfg, out = restorer(parts(neck)), into(neck), tmp_path / 'out.pth'
    transfer = convert_pretrained(save(model), out, cfg)
    settings = {}
    exec('\n'.join(transfer.usage), settings)
    written = torch.load(settings['load_from'])['state_dict']
    assert set(written) == {key for key in model.state_dict()
                            if not key.startswith('tail.')}
    assert all(key.startswith('tail.') for key in transfer.left)
    loaded = build(cfg)
    result = loaded.load_state_dict(written, strict=False)
    assert not result.unexpected_keys
    head = 'bbox_head.' if into is detector else 'decode_head.conv_seg.'
    assert all(key.startswith(head) for key in result.missing_keys)
    found = loaded.state_dict()
    for key, value in written.items():
        assert torch.equal(found[key], value), key


def restorer_of(plain):
    """Return a restorer that starts from a trained detector, as by load_from."""
    model = restorer(detector_parts('FPT'), keep_identity=True)
    assert not model.load_state_dict(
        plain.backbone.state_dict(prefix='backbone.')
        | plain.neck.state_dict(prefix='neck.'), strict=False).unexpected_keys
    return model


@pytest.fixture
def detectors(save, tmp_path):
    """Pre-train FPT's branches for a detector with FPN, and graft them."""
    torch.manual_seed(0)
    plain = build(detector('FPN'))
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # not the initial values
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    onto, config = save(plain, 'trained.pth'), tmp_path / 'c.py'
    pretrained = restorer_of(plain)
    before = {k: v.clone() for k, v in pretrained.state_dict().items()}
    trained(pretrained, steps=4)
    out = tmp_path / 'out.pth'
    detector().dump(config)
    transfer = main(parser().parse_args([
        'pretrained', str(save(pretrained)), str(out), '--into', str(config),
        '--onto', str(onto)]))
    grafted = build(detector())
    result = grafted.load_state_dict(torch.load(out)['state_dict'], strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith('neck.fusions.') for key in result.missing_keys)
    return plain, grafted, before, pretrained.state_dict(), transfer


def test_a_trained_detector_keeps_its_outputs(detectors):
    from mmdet.testing import demo_mm_inputs
    plain, grafted, *_ = detectors
    data = demo_mm_inputs(2, [[3, 96, 128]] * 2, num_classes=2)
    inputs = torch.stack(data['inputs']).float() / 50 - 2
    samples = data['data_samples']
    for sample in samples:
        sample.set_metainfo(dict(pad_shape=(96, 128), batch_input_shape=(96, 128)))
    for model in (plain, grafted):
        model.eval()
    for a, b in zip(plain.extract_feat(inputs), grafted.extract_feat(inputs)):
        assert torch.equal(a, b)
    found, wanted = ([s.pred_instances for s in model.predict(inputs, samples, False)]
                     for model in (grafted, plain))
    assert sum(map(len, wanted)) > 0
    for a, b in zip(found, wanted):
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(a[key], b[key])
    found, wanted = (model.train().loss(inputs, samples)
                     for model in (grafted, plain))
    for key, values in wanted.items():
        assert all(map(torch.equal, found[key], values)), key


def test_the_branches_have_the_pretrained_weights(detectors):
    plain, grafted, before, after, transfer = detectors
    found = grafted.state_dict()
    taken = {k for k in transfer.state_dict if k not in set(transfer.trained)}
    assert {k.split('.')[1] for k in taken} == {
        'self_transformers', 'grounding_transformers', 'rendering_transformers'}
    for key in taken:
        assert torch.equal(found[key], after[key])
    changed = {k for k in taken if not torch.equal(before[k], after[k])}
    assert changed == taken
    # Backbone and pyramid were frozen.
    for key, value in before.items():
        if key.startswith(('backbone.', 'neck.pyramid.')):
            assert torch.equal(value, after[key]), key
    fusions = {k for k in after if k.startswith('neck.fusions.')}
    assert fusions <= set(transfer.new) & set(transfer.left)
    assert any(after[k].any() for k in fusions if 'out_conv' in k)
    assert not any(found[k].any() for k in fusions if 'out_conv' in k)
    text = '\n'.join(transfer.lines())
    assert 'trained.pth: ' in text and f'trained   {len(plain.state_dict())} of' in text


def test_identity_without_a_trained_model(save, tmp_path):
    model = restorer(detector_parts('FPT'), keep_identity=True)
    transfer = convert_pretrained(save(model), tmp_path / 'out.pth', detector())
    assert all('_transformers.' in key for key in transfer.state_dict)
    assert {'backbone.conv1.weight', 'neck.fusions.0.out_conv.weight'} < set(
        transfer.new)
    assert 'keep_identity' in transfer.left


def test_bad_input(save, tmp_path):
    out = tmp_path / 'out.pth'
    plain = save(build(detector('FPN')), 'trained.pth')
    grafted = save(build(detector()), 'grafted.pth')
    other = save(build(segmentor('FPN')), 'other.pth')
    source = save(restorer(detector_parts('FPT')), 'all.pth')
    with pytest.raises(ValueError, match='pre-trained with keep_identity=True, so'):
        convert_pretrained(source, out, detector(), onto=plain)
    source = save(restorer(detector_parts('FPT'), keep_identity=True))
    with pytest.raises(ValueError, match='plain pyramid, got one with neck.'):
        convert_pretrained(source, out, detector(), onto=grafted)
    with pytest.raises(ValueError, match='another model than this RetinaNet: it lacks '
                       'bbox_head.* model lacks .*decode_head'):
        convert_pretrained(source, out, detector(), onto=other)
    with pytest.raises(ValueError, match='must be the load_from of the pre-training'):
        convert_pretrained(source, out, detector(), onto=plain)
    with pytest.raises(ValueError, match='neck of RetinaNet must be an FPT'):
        convert_pretrained(source, out, detector('FPN'), onto=plain)
    with pytest.raises(ValueError, match='out must name another file'):
        convert_pretrained(source, plain, detector(), onto=plain)
    cfg = segmentor()
    cfg.model.decode_head.channels = 16
    with pytest.raises(ValueError, match='another .* decode_head.*tensors differ'):
        convert_pretrained(save(restorer(segmentor_parts('FPT'))), out, cfg)
    assert not out.exists()


MINI = 'mobilenet-v2_fpt'
SHIPPED = [
    (f'restoration_faster-rcnn_{MINI}_1xb8-2k_trees',
     f'faster-rcnn_{MINI}_restoration_trees'),
    (f'restoration_sem-fpn_{MINI}_1xb8-2k_nuclei',
     f'sem-fpn_{MINI}_restoration_nuclei'),
    *(pytest.param(*names, marks=pytest.mark.slow) for names in [
        ('restoration_faster-rcnn_r50_fpt_8xb32-100e_224',
         'faster-rcnn_r50_fpt_restoration_1x_coco'),
        ('restoration_sem-fpn_r50_fpt_8xb32-100e_224',
         'sem-fpn_r50_fpt_restoration_4xb2-80k_cityscapes-512x1024')])]


@pytest.mark.parametrize('source, target', SHIPPED)
def test_shipped_configs_load_the_written_weights(source, target, save, tmp_path):
    cfg = Config.fromfile(CONFIGS / f'pretraining/{source}.py')
    with DefaultScope.overwrite_default_scope('mmengine'):
        model = MODELS.build(cfg.model)
    into = Config.fromfile(CONFIGS / f'pretraining/{target}.py')
    assert cfg.model.data_preprocessor.mean == into.model.data_preprocessor.mean
    assert cfg.model.data_preprocessor.std == into.model.data_preprocessor.std
    transfer = convert_pretrained(save(model), tmp_path / 'out.pth', into)
    parts = ('backbone.', 'neck.', 'decode_head.')
    assert all(key.startswith('tail.') for key in transfer.left)
    assert all(key.startswith('decode_head.conv_seg.') or not key.startswith(parts)
               for key in transfer.new)
    assert transfer.usage[0].startswith('load_from')
    assert into.load_from.rpartition('/')[2].startswith('restoration_')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['nuclei_restoration', 'camvid_restoration'])
def test_rows_of_studies_fit_their_pretraining(name, save, tmp_path):
    study = Study.load(name)
    for row, settings in study.rows.items():
        if 'pretrain' not in settings:
            continue
        before = Config.fromfile(CONFIGS / settings['pretrain']['config'])
        before.merge_from_dict(settings['pretrain']['settings'])
        with DefaultScope.overwrite_default_scope('mmengine'):
            model = MODELS.build(before.model)
        transfer = convert_pretrained(
            save(model), tmp_path / f'{row}.pth', study.config_of(row, 0))
        assert all(key.startswith('tail.') for key in transfer.left)
        assert all(key.startswith('decode_head.conv_seg.') for key in transfer.new)
        seen = set(before.train_dataloader.dataset['indices'])
        assert not seen & set(study.config.val_dataloader.dataset['indices'])
        assert seen >= set(study.config.train_dataloader.dataset['indices'])
