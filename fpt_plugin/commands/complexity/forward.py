"""One forward pass of a detector or segmentor, part by part.

The pass runs on a copy of the model, which may be on the meta device (shapes
without data).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...openmmlab.models import data_samples, describe


@dataclass(frozen=True)
class RoICounts:
    """Numbers of RoIs per image in the heads of a two-stage detector."""

    proposals: int
    detections: int
    samples: int
    positives: int

    @classmethod
    def of(cls, model: nn.Module) -> RoICounts:
        """Read the numbers from the model's configs, with mmdet's defaults."""
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
        return (f'RoI heads receive {self.proposals} proposals and, for masks, '
                f'{self.detections} detections per image; saved for backward: '
                f'{self.samples} samples, {self.positives} of them positive')


class Attempts:
    """Run steps that may fail, and collect their errors.

    Attributes:
        errors: One line for each error.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, function: Callable, *args, **kwargs) -> object | None:
        """Return the result, or None after an error."""
        try:
            return function(*args, **kwargs)
        # Code of the libraries and of user models may raise any exception.
        except Exception as error:
            self.errors.append(describe(error))
            return None


def run_model(model: nn.Module, images: Tensor) -> list[str]:
    """Run one forward pass of a detector or segmentor, with its heads.

    In training mode, two-stage heads receive as many RoIs as their sampler draws,
    and auxiliary heads run.

    Args:
        model: A copy, which is changed.
        images: (B, C, H, W).

    Returns:
        One line for each error.
    """
    samples = data_samples(images)
    attempt = Attempts()
    # RoI extraction depends on the data, and pooling is not counted: only the
    # number and size of the RoI features matter.
    for module in model.modules():
        if hasattr(module, 'roi_layers'):
            module.forward = functools.partial(_roi_features, module)
    if hasattr(model, 'encode_decode'):
        _run_segmentor(model, images, samples, attempt)
    elif has_plain_roi_head(model):
        _run_two_stage(model, images, attempt)
    elif hasattr(model, 'forward_transformer'):
        _run_transformer(model, images, samples, attempt)
    else:
        attempt(model, images, samples, mode='tensor')
    return attempt.errors


def has_plain_roi_head(model: nn.Module) -> bool:
    """Return whether each RoI head can run on given RoI features."""
    head = getattr(model, 'roi_head', None)
    if head is None:
        return False
    for kind in _kinds(head):
        arguments = _forward_arguments(head, kind)
        required = [
            name for name, argument in arguments.items()
            if argument.default is argument.empty
        ]
        if not set(required) <= {'stage', 'x', 'rois'} \
                or 'rois' not in arguments:
            return False
    return True


def _kinds(roi_head: nn.Module) -> list[str]:
    return [
        kind for kind in ('bbox', 'mask')
        if getattr(roi_head, f'{kind}_head', None) is not None
    ]


def _forward_arguments(roi_head: nn.Module,
                       kind: str) -> Mapping[str, inspect.Parameter]:
    method = getattr(roi_head, f'_{kind}_forward', None)
    return inspect.signature(method).parameters if method else {}


def _run_segmentor(model: nn.Module, images: Tensor,
                   samples: list[BaseDataElement], attempt: Attempts) -> None:
    """Run backbone, neck and decode heads; in training the auxiliary heads too."""
    features = []
    extract_feat = model.extract_feat

    def extract(*args, **kwargs):
        features.append(extract_feat(*args, **kwargs))
        return features[-1]

    model.extract_feat = extract
    attempt(model.encode_decode, images, [s.metainfo for s in samples])
    if not features or not model.training:
        return
    for head in _listed(getattr(model, 'auxiliary_head', None)):
        attempt(head.forward, features[-1])


def _run_two_stage(model: nn.Module, images: Tensor, attempt: Attempts) -> None:
    """Run the dense parts, then each RoI head with its usual number of RoIs."""
    features = attempt(model.extract_feat, images)
    if features is None:
        return
    head = model.roi_head
    for part in (getattr(model, 'rpn_head', None),
                 getattr(model, 'semantic_head', None),
                 getattr(head, 'semantic_head', None)):
        if part is not None:
            attempt(part.forward, features)
    counts = RoICounts.of(model)
    numbers = dict(
        bbox=counts.samples if model.training else counts.proposals,
        mask=counts.positives if model.training else counts.detections)
    for kind in _kinds(head):
        rois = images.new_zeros(numbers[kind] * len(images), 5)
        forward = getattr(head, f'_{kind}_forward')
        arguments = _forward_arguments(head, kind)
        if 'stage' not in arguments:
            attempt(forward, features, rois)
            continue
        stages = range(len(getattr(head, f'{kind}_head')))
        if 'training' in arguments:  # HTC tests all stages in one call
            forward = functools.partial(forward, training=model.training)
            stages = stages if model.training else stages[-1:]
        for stage in stages:
            attempt(forward, stage, features, rois)


def _run_transformer(model: nn.Module, images: Tensor,
                     samples: list[BaseDataElement], attempt: Attempts) -> None:
    """Run a DETR, with only those outputs that the head's forward accepts.

    In training mode mmdet also returns inputs of the losses.
    """
    features = attempt(model.extract_feat, images)
    if features is None:
        return
    outputs = attempt(model.forward_transformer, features, samples)
    if outputs is not None:
        accepted = inspect.signature(model.bbox_head.forward).parameters
        attempt(model.bbox_head.forward,
                **{k: v for k, v in outputs.items() if k in accepted})


def _roi_features(extractor: nn.Module,
                  features: Sequence[Tensor | None],
                  rois: Tensor,
                  roi_scale_factor: float | None = None) -> Tensor:
    """Make zero features of the extractor's output size: (n, C, h, w)."""
    size = extractor.roi_layers[0].output_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    out = rois.new_zeros(len(rois), extractor.out_channels, height, width)
    if torch.is_grad_enabled():
        # Like real RoI features, they require gradients if the maps do, and
        # are not a leaf, so that in-place operations are allowed.
        out = out.requires_grad_(
            any(x is not None and x.requires_grad for x in features)).clone()
    return out


def _listed(modules: nn.Module | None) -> list[nn.Module]:
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
