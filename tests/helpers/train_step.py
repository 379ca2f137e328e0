"""One training step of a shipped config on random data of its library."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS
from mmengine.structures import BaseDataElement, PixelData

from fpt_plugin.detectors.strides import watch_strides
from fpt_plugin.pretraining.pixel_gpt import SIZES
from helpers.restorers import batch_of
from helpers.shipped_configs import build

SIZE = (96, 128)  # of the images


def bbox_heads(cfg: Config) -> list:
    heads = (cfg.model.get('roi_head') or cfg.model).bbox_head
    return heads if isinstance(heads, list) else [heads]


def images() -> list[torch.Tensor]:
    return [torch.randint(256, (3, *SIZE)) for _ in range(2)]


def detection_batch(cfg: Config, model: torch.nn.Module) -> dict:
    from mmdet.testing import demo_mm_inputs
    return demo_mm_inputs(
        2, [[3, *SIZE]] * 2, num_classes=bbox_heads(cfg)[0].num_classes,
        with_mask=getattr(model, 'with_mask', False))


def segmentation_batch(cfg: Config) -> dict:
    from mmseg.structures import SegDataSample
    classes = cfg.model.decode_head.num_classes
    samples = [SegDataSample(
        metainfo=dict(img_shape=SIZE),
        gt_sem_seg=PixelData(data=torch.randint(classes, (1, *SIZE))))
        for _ in range(2)]
    return dict(inputs=images(), data_samples=samples)


def train_step(cfg: Config) -> None:
    """Compute losses and gradients once; they must be finite and complete."""
    segments = cfg.default_scope == 'mmseg'
    detects = cfg.default_scope == 'mmdet'
    if detects and bbox_heads(cfg)[0].num_classes == 1:
        # random labels of mmdet start at 1, which one class does not have
        for head in bbox_heads(cfg):
            head.num_classes = 2
    if cfg.model.get('as_two_stage'):
        cfg.model.num_queries = 20  # small maps have few pixels
    # The preprocessor pads batches to the size of the crops.
    if segments:
        cfg.model.data_preprocessor.size = SIZE
    preprocessor = cfg.model.get('data_preprocessor') or {}
    for augment in preprocessor.get('batch_augments') or ():
        augment.size = SIZE
    size = SIZE
    if 'crop' in cfg.model:
        size = (cfg.model.crop, cfg.model.crop)
        cfg.model.depth = 1  # the layers are equal, and the paper's are large
    if cfg.model.type == 'PixelGPT':
        cfg.model.image_size, size = 8, (8, 8)
        numbers = cfg.model.size
        numbers = SIZES[numbers] if isinstance(numbers, str) else numbers
        cfg.model.size = dict(numbers, depth=1)
        cfg.model.palette = [[i % 256] * 3 for i in range(512)]
    model = build(cfg).train()
    watch_strides(model)  # it must not warn
    model.init_weights()
    if segments:
        data = segmentation_batch(cfg)
    elif detects:
        data = detection_batch(cfg, model)
    elif 'collate_fn' in cfg.train_dataloader:
        collate = dict(cfg.train_dataloader.collate_fn)
        data = FUNCTIONS.get(collate.pop('type'))(
            [dict(img=np.random.randint(256, size=(256, 256, 3), dtype=np.uint8))
             for _ in range(2)], **collate)
    elif cfg.model.type == 'TTSR':
        size = (16, 20)
        samples = [BaseDataElement(
            gt_img=torch.randint(256, (3, 64, 80)).byte(),
            ref_img=torch.randint(256, (3, 48, 40)).byte()) for _ in range(2)]
        data = dict(inputs=[255 * torch.rand(3, *size) for _ in samples],
                    data_samples=samples)
    else:  # images without labels
        data = dict(inputs=[torch.randint(256, (3, *size)) for _ in range(2)])
        if hasattr(model, 'tasks'):  # with the original images
            data['data_samples'] = batch_of(SIZE)[1]
    data = model.data_preprocessor(data, True)
    assert data['inputs'].shape == (2, 3, *size)
    total, _ = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert total.isfinite()
    # DDP accepts unused parameters only with find_unused_parameters.
    unused = [key for key, p in model.named_parameters()
              if p.requires_grad and p.grad is None]
    assert not unused or cfg.get('find_unused_parameters'), unused
