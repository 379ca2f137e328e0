"""Running the hosts' detectors and segmentors part by part, without data.

The forward passes that complexity.py counts. They run on a copy of a model,
whose tensors may be on the meta device: shapes alone, nothing is computed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from .counting import describe

# Arguments of the RoI heads' forwards that take RoIs and nothing else that
# would have to be made up; those of the other heads are left to themselves.
_PLAIN_FORWARDS = {
    'bbox': [('x', 'rois'), ('stage', 'x', 'rois')],
    'mask': [('x', 'rois', 'pos_inds', 'bbox_feats'), ('stage', 'x', 'rois')],
}


@dataclass(frozen=True)
class RoICounts:
    """How many RoIs of an image the heads of a two-stage detector see."""

    proposals: int
    detections: int
    samples: int
    positives: int

    @classmethod
    def of(cls, model: nn.Module) -> RoICounts:
        """Read them from ``test_cfg`` and ``train_cfg``, or mmdet's defaults."""
        test, train = model.test_cfg or {}, model.train_cfg or {}
        proposals = (test.get('rpn') or {}).get('max_per_img', 1000)
        detections = (test.get('rcnn') or {}).get('max_per_img', 100)
        rcnn = train.get('rcnn') or {}
        rcnn = rcnn[0] if isinstance(rcnn, (list, tuple)) else rcnn
        sampler = rcnn.get('sampler') or {}
        samples = sampler.get('num', 512)
        return cls(
            proposals=proposals,
            detections=detections if detections > 0 else proposals,
            samples=samples,
            positives=int(samples * sampler.get('pos_fraction', 0.25)))

    def __str__(self) -> str:
        return (f'RoI heads see {self.proposals} proposals and, for masks, '
                f'{self.detections} detections an image; saved for backward: '
                f'{self.samples} samples, {self.positives} of them positive')


class Attempts:
    """Runs steps that may fail, and keeps what they raised.

    Attributes:
        errors: What failed, one line each.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, function: Callable, *args, **kwargs) -> object | None:
        """The result, or None where it raised."""
        try:
            return function(*args, **kwargs)
        # Code of the hosts and of anyone's models: it may raise anything.
        except Exception as error:
            self.errors.append(describe(error))
            return None


def run_model(model: nn.Module, images: Tensor) -> list[str]:
    """One forward pass of a detector or segmentor, heads included.

    Args:
        model: A copy, which is changed.
        images: (B, C, H, W). In training the two-stage heads see as many RoIs
            as their sampler takes, else as many as in testing, and auxiliary
            heads run.

    Returns:
        What failed, one line each.
    """
    samples = _data_samples(images)
    attempt = Attempts()
    if hasattr(model, 'decode_head'):
        _run_segmentor(model, images, samples, attempt)
    elif has_plain_roi_head(model):
        _run_two_stage(model, images, attempt)
    else:
        attempt(model, images, samples, mode='tensor')
    return attempt.errors


def has_plain_roi_head(model: nn.Module) -> bool:
    """Whether the RoI heads can be given RoI features, one after the other."""
    head = getattr(model, 'roi_head', None)
    return head is not None and all(
        _forward_arguments(head, kind) in plain
        for kind, plain in _PLAIN_FORWARDS.items() if _has(head, kind))


def _has(roi_head: nn.Module, kind: str) -> bool:
    return getattr(roi_head, f'{kind}_head', None) is not None


def _forward_arguments(roi_head: nn.Module, kind: str) -> tuple[str, ...]:
    method = getattr(roi_head, f'_{kind}_forward', None)
    return tuple(inspect.signature(method).parameters) if method else ()


def _data_samples(images: Tensor) -> list[BaseDataElement]:
    """What the hosts' data samples tell the models of images of full size."""
    shape = tuple(images.shape[2:])
    sizes = {
        f'{name}_shape': shape
        for name in ('img', 'ori', 'pad', 'batch_input')
    }
    return [
        BaseDataElement(
            metainfo=dict(
                **sizes,
                scale_factor=(1., 1.),
                padding_size=[0, 0, 0, 0],
                flip=False)) for _ in images
    ]


def _run_segmentor(model: nn.Module, images: Tensor,
                   samples: list[BaseDataElement], attempt: Attempts) -> None:
    """Backbone, neck, decode heads; in training the auxiliary heads too."""
    features = []
    extract_feat = model.extract_feat

    def extract(*args, **kwargs):
        features.append(extract_feat(*args, **kwargs))
        return features[-1]

    model.extract_feat = extract
    attempt(model.encode_decode, images, [s.metainfo for s in samples])
    if not features:
        return
    for head in _listed(getattr(model, 'auxiliary_head', None)):
        attempt(head.forward, features[-1])


def _run_two_stage(model: nn.Module, images: Tensor, attempt: Attempts) -> None:
    """The dense parts as they are; the RoI heads on features of the right size.

    What the extractors cut out depends on the data, and pooling is not
    counted, so only the number and size of the RoI features matter.
    """
    features = attempt(model.extract_feat, images)
    if features is None:
        return
    for name in ('rpn_head', 'semantic_head'):
        if getattr(model, name, None) is not None:
            attempt(getattr(model, name).forward, features)
    counts = RoICounts.of(model)
    numbers = dict(
        bbox=counts.samples if model.training else counts.proposals,
        mask=counts.positives if model.training else counts.detections)
    head = model.roi_head
    for kind, number in numbers.items():
        if not _has(head, kind):
            continue
        for extractor in _listed(getattr(head, f'{kind}_roi_extractor')):
            extractor.forward = functools.partial(_roi_features, extractor)
        rois = images.new_zeros(number * len(images), 5)
        forward = getattr(head, f'_{kind}_forward')
        if 'stage' in _forward_arguments(head, kind):
            for stage in range(len(getattr(head, f'{kind}_head'))):
                attempt(forward, stage, features, rois)
        else:
            attempt(forward, features, rois)


def _roi_features(extractor: nn.Module,
                  features: tuple[Tensor, ...],
                  rois: Tensor,
                  roi_scale_factor: float | None = None) -> Tensor:
    """Features of RoIs, of the extractor's size: (n, C, h, w)."""
    size = extractor.roi_layers[0].output_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    out = features[0].new_zeros(
        len(rois), extractor.out_channels, height, width)
    # A leaf that wants gradients, as what is cut out of learned features does.
    return out.requires_grad_(
        torch.is_grad_enabled() and any(x.requires_grad for x in features))


def _listed(modules: nn.Module | None) -> list[nn.Module]:
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
