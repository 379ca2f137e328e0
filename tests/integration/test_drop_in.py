"""The one-line drop-in: a trained detector keeps every digit at step 0."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed

DETECTORS = {
    'faster-rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'gn': 'mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py',
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
SIZE = (96, 128)  # H, W


def write_config(path, base: str, *lines: str) -> Config:
    """A user's config: a base of the host and the lines that differ."""
    path.write_text('\n'.join([
        f"_base_ = '{base}'",
        "custom_imports = dict(imports=['fpt_plugin'])",
        # random weights, no download
        'model = dict(backbone=dict(init_cfg=None))',
        *lines
    ]))
    cfg = Config.fromfile(path)
    # The hosts' inference would bring small images to full size.
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = SIZE[::-1]
    return cfg


FPT_LINE = "model['neck'] = dict(type='FPT')"


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Two images in COCO format."""
    root = tmp_path_factory.mktemp('coco')
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in (1, 2):
        pixels = rng.integers(0, 255, (*SIZE, 3), np.uint8)
        cv2.imwrite(str(root / f'{i}.png'), pixels)
        images.append(
            dict(id=i, file_name=f'{i}.png', height=SIZE[0], width=SIZE[1]))
        annotations.append(
            dict(
                id=i,
                image_id=i,
                category_id=1,
                bbox=[10, 10, 40 * i, 50],
                area=40 * i * 50,
                segmentation=[[10, 10, 10 + 40 * i, 10, 10 + 40 * i, 60, 10,
                               60]],
                iscrowd=0))
    (root / 'instances.json').write_text(
        json.dumps(
            dict(
                images=images,
                annotations=annotations,
                categories=[dict(id=1, name='person')])))
    return root


@pytest.fixture(scope='module', params=DETECTORS)
def trained(request, tmp_path_factory):
    """A plain detector, its checkpoint and the config with FPT."""
    folder = tmp_path_factory.mktemp(request.param)
    init_default_scope('mmdet')
    plain_cfg = write_config(folder / 'plain.py', DETECTORS[request.param])
    fpt_cfg = write_config(folder / 'fpt.py', DETECTORS[request.param],
                           FPT_LINE)
    torch.manual_seed(0)
    plain = init_detector(plain_cfg, device='cpu')
    with torch.no_grad():
        # Random features of a deep net grow; keep them at unit scale, and
        # move every weight off its initialisation.
        for name, p in plain.named_parameters():
            if name.startswith('backbone') and 'bn3' in name:
                p.mul_(0.3)
            elif not name.startswith('backbone'):
                p.add_(0.02 * torch.randn_like(p))
    checkpoint = folder / 'plain.pth'
    torch.save(
        dict(
            state_dict=plain.state_dict(),
            meta=dict(dataset_meta=dict(classes=('person', ) * 80))),
        checkpoint)
    return plain.eval(), str(checkpoint), plain_cfg, fpt_cfg


@torch.no_grad()
def outputs(model, dataset):
    """Features, losses with one seed, predictions."""
    image = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    model.eval()
    features = model.extract_feat(image)
    sample = inference_detector(model, str(dataset / '1.png'))
    predictions = {
        k: v
        for k, v in sample.pred_instances.items()
        if isinstance(v, torch.Tensor)
    }
    return features, losses(model), predictions


def losses(model) -> dict:
    from mmdet.testing import demo_mm_inputs
    data = demo_mm_inputs(
        2, [[3, *SIZE]] * 2,
        num_classes=80,
        with_mask=getattr(model, 'with_mask', False))
    model.train()
    data = model.data_preprocessor(data, True)
    set_random_seed(0)
    found = model(**data, mode='loss')
    model.eval()
    return found


def assert_identical(ours, plain) -> None:
    for a, b in zip(ours[0], plain[0]):
        assert torch.equal(a, b) and b.std() > 0
    flat = [torch.cat(list(_tensors(x[1]))) for x in (ours, plain)]
    assert torch.equal(*flat) and flat[1].isfinite().all()
    assert ours[2].keys() == plain[2].keys()
    for name, value in plain[2].items():
        assert torch.equal(ours[2][name], value), name


def _tensors(found: dict):
    for value in found.values():
        for item in value if isinstance(value, list) else [value]:
            yield item.reshape(-1)


def test_init_detector(trained, dataset):
    plain, checkpoint, _, cfg = trained
    model = init_detector(cfg, checkpoint, device='cpu')
    assert type(model.neck).__name__ == 'FPT'
    assert_identical(outputs(model, dataset), outputs(plain, dataset))


def test_after_init_weights(trained, dataset):
    """As in training: initialise, then load_from."""
    plain, checkpoint, _, cfg = trained
    model = init_detector(cfg, device='cpu')
    model.init_weights()
    from mmengine.runner import load_checkpoint
    load_checkpoint(model, checkpoint, map_location='cpu')
    assert_identical(outputs(model, dataset), outputs(plain, dataset))


def test_a_trained_branch_changes_the_outputs(trained, dataset):
    """The checks above can fail."""
    plain, checkpoint, _, cfg = trained
    model = init_detector(cfg, checkpoint, device='cpu')
    with torch.no_grad():
        model.neck.fusions[0].out_conv.weight.add_(1e-3)
    with pytest.raises(AssertionError):
        assert_identical(outputs(model, dataset), outputs(plain, dataset))


def test_runner_that_only_tests(trained, dataset, tmp_path):
    """It never calls init_weights."""
    _, checkpoint, plain_cfg, fpt_cfg = trained
    results = []
    for name, cfg in (('plain', plain_cfg), ('fpt', fpt_cfg)):
        cfg = cfg.copy()
        cfg.work_dir = str(tmp_path / name)
        cfg.load_from = checkpoint
        cfg.test_dataloader.num_workers = 0
        cfg.test_dataloader.persistent_workers = False
        cfg.test_dataloader.dataset.update(
            data_root=str(dataset),
            ann_file='instances.json',
            data_prefix=dict(img=''))
        dump = tmp_path / f'{name}.pkl'
        cfg.test_evaluator = dict(
            type='DumpDetResults', out_file_path=str(dump))
        Runner.from_cfg(cfg).test()
        results.append(pickle.loads(dump.read_bytes()))
    for a, b in zip(*results):
        for key, value in b['pred_instances'].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(a['pred_instances'][key], value), key
        assert len(b['pred_instances']['scores'])


def test_segmentor(tmp_path):
    """Semantic FPN of mmseg: identical logits."""
    from mmseg.apis import init_model
    base = 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
    lines = [
        "norm_cfg = dict(type='BN')", "model['pretrained'] = None",
        "model['data_preprocessor'] = dict(size=None, size_divisor=32)",
        "model['backbone']['norm_cfg'] = norm_cfg",
        "model['decode_head'] = dict(norm_cfg=norm_cfg)"
    ]
    plain_cfg = write_config(tmp_path / 'plain.py', base, *lines)
    fpt_cfg = write_config(tmp_path / 'fpt.py', base, *lines, FPT_LINE)
    plain = init_model(plain_cfg, device='cpu')
    torch.save(
        dict(state_dict=plain.state_dict(), meta={}), tmp_path / 'plain.pth')
    ours = init_model(fpt_cfg, str(tmp_path / 'plain.pth'), device='cpu')
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        a, b = (m.eval().encode_decode(image, [dict(img_shape=(64, 96))] * 2)
                for m in (ours, plain))
    assert torch.equal(a, b) and b.std() > 0
