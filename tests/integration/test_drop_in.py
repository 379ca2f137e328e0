"""A trained model keeps every digit when FPT is put around its neck."""

from __future__ import annotations

import pytest
import torch
from helpers.shipped_configs import build, load, load_host, without_fpt
from helpers.synthetic_data import write_coco_squares
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from fpt_plugin import LambdaLayer

DETECTORS = {
    'faster-rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'gn': 'mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py',
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
SIZE = (96, 128)  # H, W


def read_config(base: str, *lines: str) -> Config:
    """Read a user's config: a base of mmdet and the lines that differ."""
    cfg = Config.fromstring('\n'.join([
        f"_base_ = '{base}'", "custom_imports = dict(imports=['fpt_plugin'])",
        'model = dict(backbone=dict(init_cfg=None))', *lines]), '.py')
    # The base enlarges the images to 1333 x 800.
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = SIZE[::-1]
    return cfg


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp('coco')
    write_coco_squares(root, count=2, size=96)
    return root


@pytest.fixture(scope='module', params=DETECTORS)
def trained(request, tmp_path_factory):
    """Return a plain detector, its checkpoint, its config and that with FPT."""
    init_default_scope('mmdet')
    base = DETECTORS[request.param]
    plain_cfg, fpt_cfg = read_config(base), read_config(
        base, "model['neck'] = dict(type='FPT')")
    torch.manual_seed(0)
    plain = init_detector(plain_cfg, device='cpu')
    with torch.no_grad():
        # Keep the features of the deep net at unit scale, and move all other
        # weights away from their initial values.
        for name, p in plain.named_parameters():
            if name.startswith('backbone') and 'bn3' in name:
                p.mul_(0.3)
            elif not name.startswith('backbone'):
                p.add_(0.02 * torch.randn_like(p))
    checkpoint = tmp_path_factory.mktemp('plain') / 'plain.pth'
    torch.save(dict(state_dict=plain.state_dict(), meta=dict(
        dataset_meta=dict(classes=('person', ) * 80))), checkpoint)
    return plain.eval(), str(checkpoint), plain_cfg, fpt_cfg


@torch.no_grad()
def outputs(model, dataset) -> dict[str, torch.Tensor]:
    """Return the maps of the neck, and the predictions for an image."""
    image = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    maps = model.eval().extract_feat(image)
    assert all(x.std() > 0 for x in maps)
    sample = inference_detector(model, str(dataset / 'images/001.png'))
    found = {key: value for key, value in sample.pred_instances.items()
             if isinstance(value, torch.Tensor)}
    assert len(found['scores'])
    return {**found, **dict(enumerate(maps))}


def assert_identical(ours, plain) -> None:
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], value) for name, value in plain.items())


@pytest.mark.parametrize('way', ['init_detector', 'training'])
def test_detector_starts_identical(trained, dataset, way):
    """Training calls init_weights and then loads the checkpoint."""
    plain, checkpoint, _, cfg = trained
    if way == 'init_detector':
        model = init_detector(cfg, checkpoint, device='cpu')
    else:
        model = init_detector(cfg, device='cpu')
        model.init_weights()
        load_checkpoint(model, checkpoint, map_location='cpu')
    assert type(model.neck).__name__ == 'FPT'
    want = outputs(plain, dataset)
    assert_identical(outputs(model, dataset), want)
    with torch.no_grad():  # the comparison can fail
        model.neck.fusions[0].out_conv.weight.add_(1e-3)
    with pytest.raises(AssertionError):
        assert_identical(outputs(model, dataset), want)


@pytest.mark.parametrize('name', [
    'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py',
    'fpt/sem-fpn_r50_fpt_4xb4-160k_ade20k-512x512.py',
    'fpt/mask-rcnn_swin-t-p4-w7_fpt_amp-ms-crop-3x_coco.py',
    'fpt/retinanet_pvtv2-b0_fpt_1x_coco.py',
    'lambda_resnet/faster-rcnn_r50_lambda-plugin-c4-c5_fpn_1x_coco.py'])
@torch.no_grad()
def test_shipped_configs_start_as_their_baselines(name):
    """The maps for the heads are equal, with and without init_weights."""
    plain = build(load_host(name) if '_r50_' in name else without_fpt(name)).eval()
    for module in plain.modules():  # statistics as after training
        if hasattr(module, 'running_mean'):
            nn.init.uniform_(module.running_mean, -.1, .1)
            nn.init.uniform_(module.running_var, .5, 2)
    image = torch.randn(1, 3, 97, 131)
    expected = plain.extract_feat(image)
    assert all(x.isfinite().all() and x.std() > 0 for x in expected)
    ours = build(load(name)).eval()
    layers = [m for m in ours.modules() if isinstance(m, LambdaLayer)]
    assert len(layers) == (6 + 3 if 'plugin' in name else 0)
    for start in (lambda: None, ours.init_weights):
        start()
        keys = ours.load_state_dict(plain.state_dict(), strict=False)
        assert not keys.unexpected_keys
        assert all(key.startswith('neck.') or '.lambda_layer.' in key
                   for key in keys.missing_keys)
        assert all(map(torch.equal, ours.extract_feat(image), expected))
    changed = layers[0].gate if layers else ours.neck.fusions[0].out_conv.weight
    changed.add_(1e-2)
    assert not all(map(torch.equal, ours.extract_feat(image), expected))
