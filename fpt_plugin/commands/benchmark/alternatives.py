"""Compare FPT with other necks in one Faster R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...openmmlab.models import build_model, describe, load_config
from ..complexity.command import complexity
from ..complexity.forward import RoICounts
from .cases import BACKBONE, FPN, level_size
from .markdown import milliseconds, ratio, row, table_head
from .measuring import MAP_SCALE, Case

DETECTOR = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
PARTS = ('detector', 'neck')
BASELINE = 'FPN'
_COARSE = dict(FPN, start_level=1)


@dataclass(frozen=True)
class Published:
    """Published box AP of COCO val with a neck and without it.

    Attributes:
        without: AP of the detector with the plain FPN.
        with_neck: AP of the detector with the neck.
        source: The detector, and the source of the numbers.
    """

    without: float
    with_neck: float
    source: str

    def __str__(self) -> str:
        return f'{self.without} -> {self.with_neck}: {self.source}'


@dataclass(frozen=True)
class Alternative:
    """A neck in its usual configuration.

    Attributes:
        neck: Its config.
        finest: The finest level of its outputs.
        published: Its published gain; None: nothing was published.
    """

    neck: Any
    finest: int = 2
    published: Published | None = None


ALTERNATIVES = {
    BASELINE:
    Alternative(FPN),
    'PAFPN':
    Alternative(
        dict(FPN, type='mmdet.PAFPN'),
        published=Published(
            37.4, 37.5, 'Faster R-CNN R50 1x, mmdet 3.3.0 pafpn/metafile.yml')),
    'BFP over FPN':
    Alternative([
        FPN,
        dict(type='mmdet.BFP', in_channels=256, num_levels=5, refine_level=2,
             refine_type='non_local')
    ], published=Published(
        37.4, 38.3, 'Faster R-CNN R50 1x, all of Libra R-CNN, of which BFP is '
        'a part, mmdet 3.3.0 libra_rcnn/metafile.yml')),
    'FPN from P3':
    Alternative(_COARSE, finest=3),
    'NASFPN':
    Alternative(
        dict(_COARSE, type='mmdet.NASFPN', stack_times=7,
             norm_cfg=dict(type='BN', requires_grad=True)),
        finest=3,
        published=Published(
            37.9, 40.5, 'RetinaNet R50 640x640 50 epochs, mmdet 3.3.0 '
            'nas_fpn/metafile.yml')),
    'DyHead over FPN':
    Alternative([
        dict(_COARSE, add_extra_convs='on_output'),
        dict(type='mmdet.DyHead', in_channels=256, out_channels=256,
             num_blocks=6)
    ], finest=3, published=Published(
        39.4, 43.3, 'ATSS R50 1x, mmdet 3.3.0 dyhead/metafile.yml')),
    'FPT light':
    Alternative(dict(FPN, type='FPT', preset='light')),
    'FPT default':
    Alternative(dict(FPN, type='FPT', preset='default')),
    'FPT full':
    Alternative(
        dict(FPN, type='FPT', preset='full'),
        published=Published(
            31.6, 38.0, "Mask R-CNN R50, the paper's variant (preset 'paper' "
            'with SyncBN and DropBlock) over a pyramid of lateral convolutions, '
            'FPT, ECCV 2020; not reproduced by others')),
}


def roi_align_runs(device: str) -> bool:
    """Return whether mmcv's RoIAlign runs on the device."""
    from mmcv.ops import roi_align
    x = torch.ones(1, 1, 4, 4, device=device)
    try:
        roi_align(x, x.new_tensor([[0, 0, 0, 2, 2]]), (1, 1))
    except (NotImplementedError, RuntimeError):
        return False
    return True


@dataclass
class _State:
    model: nn.Module
    inputs: Any
    rois: dict[bool, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class AlternativesCase(Case):
    """A Faster R-CNN R50 with different necks, or only the necks.

    The detector is backbone, neck, RPN head and box head, without the decoding
    of boxes. The box head receives as many RoIs as in testing, or with gradients
    as many as in training. The RoIs are random and equal for all necks.

    Attributes:
        part: ``'detector'`` or ``'neck'``.
        shape: Height and width of the image.
        names: Keys of ALTERNATIVES.
        aligned: Whether RoIAlign runs. False if mmcv has none for the device;
            then the RoI features are ones.
    """

    part: str = 'detector'
    shape: tuple[int, int] = (800, 1344)
    batch: int = 1
    names: tuple[str, ...] = tuple(ALTERNATIVES)
    aligned: bool = True

    def candidates(self) -> tuple[str, ...]:
        """Return the names of the necks, the baseline first."""
        return self.names

    def unavailable(self, candidate: str) -> str:
        """Try the neck on small maps, because operators may be missing."""
        try:
            with torch.no_grad():
                self._neck(self._build_neck(candidate), self._maps((128, 128)))
        except (ImportError, NotImplementedError, RuntimeError) as error:
            return describe(error)
        return ''

    def prepare(self, candidate: str) -> _State:
        """Build the detector or the neck, and its inputs."""
        torch.manual_seed(0)
        if self.part == 'neck':
            return _State(
                self._build_neck(candidate), self._maps(self.shape))
        model = self._placed(build_model(detector_config(candidate)))
        counts = RoICounts.of(model)
        rois = {True: counts.samples, False: counts.proposals}
        return _State(
            model, self._randn(self.batch, 3, *self.shape, seed=0).detach(),
            {training: self._rois(n) for training, n in rois.items()})

    def _build_neck(self, candidate: str) -> nn.Module:
        return self._placed(MODELS.build(ALTERNATIVES[candidate].neck))

    def _placed(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, getattr(torch, self.dtype))

    def _maps(self, shape: tuple[int, int]) -> tuple[Tensor, ...]:
        """Draw the backbone's maps, (B, C, H, W) with strides 4 to 32."""
        return tuple(
            self._randn(
                self.batch, width, *level_size(shape, level), seed=level,
                scale=MAP_SCALE)
            for level, width in enumerate(FPN['in_channels'], 2))

    def _rois(self, count: int) -> Tensor:
        """Draw boxes of random sizes and places: (B * count, 5)."""
        generator = torch.Generator().manual_seed(0)
        height, width = self.shape
        image = torch.tensor([width, height])
        # Sides between 16 pixels and the whole image.
        sides = 16 * (image / 16) ** torch.rand(
            self.batch * count, 2, generator=generator)
        corner = (image - sides) * torch.rand(
            len(sides), 2, generator=generator)
        index = torch.arange(self.batch).repeat_interleave(count)[:, None]
        rois = torch.cat([index, corner, corner + sides], dim=1)
        return rois.to(self.device, getattr(torch, self.dtype))

    def leaves(self, state: _State) -> list[Tensor]:
        """Return parameters, and the input maps of a neck without a detector."""
        maps = state.inputs if self.part == 'neck' else ()
        return [*state.model.parameters(), *maps]

    def run(self, candidate: str, state: _State) -> Sequence[Tensor]:
        """Return the outputs of the heads, or the neck's maps."""
        if self.part == 'neck':
            return self._neck(state.model, state.inputs)
        model, training = state.model, torch.is_grad_enabled()
        model.train(training)
        maps = model.neck(model.backbone(state.inputs))
        scores, boxes = model.rpn_head(maps)
        head, rois = model.roi_head, state.rois[training]
        extractor = head.bbox_roi_extractor
        if self.aligned:
            features = extractor(maps[:extractor.num_inputs], rois)
        else:
            size = extractor.roi_layers[0].output_size
            features = maps[0].new_ones(len(rois), maps[0].shape[1], *size)
        return [*scores, *boxes, *head.bbox_head(features)]

    @staticmethod
    def _neck(neck: nn.Module, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        neck.train(torch.is_grad_enabled())
        return neck(maps)

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            part=self.part, shape=self.shape, batch=self.batch,
            dtype=self.dtype, aligned=self.aligned)


def detector_config(name: str) -> Any:
    """Make the config of the Faster R-CNN R50 with a neck of ALTERNATIVES."""
    alternative = ALTERNATIVES[name]
    config = load_config(DETECTOR)
    model = config.model
    model.backbone = dict(model.backbone, init_cfg=None, type=BACKBONE['type'])
    model.neck = alternative.neck
    strides = [2**level for level in range(
        alternative.finest, alternative.finest + 5)]
    model.rpn_head.anchor_generator.strides = strides
    model.roi_head.bbox_roi_extractor.featmap_strides = strides[:4]
    return config


def cases(names: Sequence[str], shape: tuple[int, int],
          **common: Any) -> list[AlternativesCase]:
    """Make the case of the whole detector, then the case of the necks.

    Raises:
        ValueError: The baseline is not among the names.
    """
    if BASELINE not in names:
        raise ValueError(f'--rows must include {BASELINE!r}, the baseline of the '
                         f'comparison, got {list(names)}')
    names = tuple(name for name in ALTERNATIVES if name in names)
    aligned = roi_align_runs(common.get('device', 'cpu'))
    return [
        AlternativesCase(
            name=part, part=part, shape=shape, names=names, aligned=aligned,
            **common) for part in PARTS
    ]


def counts(names: Sequence[str], shape: tuple[int, int]) -> dict[str, dict]:
    """Count the cost of each detector for one image, by name.

    Returns:
        ``parameters``, ``macs`` and ``saved_bytes`` of the detector,
        ``neck_macs``, ``not_counted``, the ``finest`` level and the ``published``
        gain.
    """
    found = {}
    for name in names:
        config = detector_config(name)
        whole = complexity(config, shape)
        necks = [p for p in whole.parts if p.name in ('pyramid', 'fpt')]
        alternative = ALTERNATIVES[name]
        found[name] = dict(
            parameters=whole.total.parameters,
            macs=whole.total.macs,
            saved_bytes=whole.total.saved_bytes,
            neck_macs=sum(part.macs or 0 for part in necks),
            not_counted=whole.not_counted,
            finest=alternative.finest,
            published=alternative.published and str(alternative.published))
    return found


def markdown(content: dict) -> str:
    """Format one table: each number, and its ratio to the baseline's."""
    machine, counted = content['environment'], content['counts']
    parts = {r['part']: r['candidates'] for r in content['records']}
    sizes = content['records'][0]
    height, width = sizes['shape']
    lines = [
        f'Faster R-CNN R50 (backbone, neck, RPN head, box head), '
        f'{sizes["batch"]} x {height}x{width}, {sizes["dtype"]}, '
        f'{machine["device"]}, {machine["threads"]} threads, torch '
        f'{machine["torch"]}. Medians of {content["repeats"]}; in brackets the '
        f'ratio to {BASELINE}.', '',
        *table_head(
            ['neck', 'levels'],
            ['GMACs', 'M parameters', 'forward', 'neck forward',
             'forward and backward', 'neck forward and backward', 'peak, forward',
             'peak, with backward', 'saved for backward'],
            ['published box AP'])]
    for name, costs in counted.items():
        base = counted[BASELINE]
        cells = [name, f'P{costs["finest"]} to P{costs["finest"] + 4}']
        cells += [f'{(costs[key] or 0) / unit:.1f}'
                  f'{ratio(costs[key], base[key])}'
                  for key, unit in (('macs', 1e9), ('parameters', 1e6))]
        detector, neck = (parts[part][name] for part in PARTS)
        reason = detector.get('skipped', detector.get('failed'))
        if reason is not None:
            lines.append(row([*cells, f'skipped: {reason}', *[''] * 6,
                              costs['published'] or '']))
            continue
        first, first_neck = (parts[part][BASELINE] for part in PARTS)
        for kind in ('forward', 'both'):
            for mine, others in ((detector, first), (neck, first_neck)):
                cells.append(milliseconds(mine, others, kind))
        for kind in ('forward_bytes', 'both_bytes'):
            cells.append('' if kind not in detector else
                         f'{detector[kind] / 2**20:.0f} MiB'
                         f'{ratio(detector[kind], first.get(kind))}')
        cells.append(f'{(costs["saved_bytes"] or 0) / 2**20:.0f} MiB'
                     f'{ratio(costs["saved_bytes"], base["saved_bytes"])}')
        lines.append(row([*cells, costs['published'] or '']))
    missing = [f'- not counted, {name}: {what}' for name, costs in
               counted.items() for what in costs['not_counted']]
    if not sizes['aligned']:
        missing.append('- RoI features are ones, because mmcv has no RoIAlign for '
                       'this device')
    return '\n'.join([*lines, *([''] if missing else []), *missing]) + '\n'
