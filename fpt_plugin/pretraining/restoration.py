"""Pre-training of backbone, neck and decode head by restoring images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..functional.checks import accumulation_dtype
from ..layers.checks import check_flags, check_map
from ..necks import FPT
from ..necks.fusion import ResidualFusion
from ..openmmlab.models import image_channels
from ..openmmlab.pins import SCOPES
from ..openmmlab.registry import register
from ..restoration.degradations import TASKS, check_tasks
from ..restoration.pixels import to_pixels
from .restoration_tail import RestorationTail

# Of the error that the loss divides by: degraded images that are almost clean, such
# as a blurred plain ground, teach little. In normalised pixels; half a grey level.
FLOOR = 1e-4


@register(MODELS)
class RestorationPretrainer(BaseModel):
    """Pre-train backbone, neck and decode head on images without labels.

    The model undoes degradations of images, a random one each. This gives a neck
    and a decode head a start, which pre-training of a backbone does not (Decoder
    Denoising Pretraining, https://arxiv.org/abs/2205.11423; many tasks: IPT,
    https://arxiv.org/abs/2012.00364). ``backbone``, ``neck`` and ``decode_head``
    are the modules of the detector or segmentor to come, under its names.

    The loss is an image's squared error over that of the degraded image, so doing
    nothing costs 1, every task counts alike, and a tenth is 10 dB. Without the
    division strong noise would outweigh all other tasks; and absolute errors are
    least where nothing is done about thin streaks, which few pixels belong to.

    Images come from the transforms :class:`~fpt_plugin.Degrade` with
    ``enlarge=True`` and :class:`~fpt_plugin.PackImage`, and mmengine's
    ImgDataPreprocessor.

    Args:
        backbone: Config of the backbone, with its library:
            ``dict(type='mmdet.ResNet', ...)``.
        neck: Config of the neck, such as ``dict(type='FPT', ...)``, or a list.
        decode_head: Config of a decode head of mmseg, which must end with
            ``conv_seg``; this layer, which is of classes, is left out, and the
            features before it are read. None: the neck's maps are read.
        tasks: Names of the degradations, see :class:`~fpt_plugin.Degrade`.
        tail: Arguments of the tail, such as ``dict(channels=64)``.
        freeze_backbone: Keep the backbone as it is, in evaluation mode.
        keep_identity: Train the branches of an FPT for a detector or segmentor
            that has been trained with the plain pyramid, given by ``load_from``:
            its backbone and pyramid are frozen, only FPT's branches and fusions
            and the tail learn. ``convert_weights pretrained`` then takes the
            branches and leaves the fusions out, so they start at zero and the
            trained model still computes what it did, bit for bit.
        data_preprocessor: mmengine's ImgDataPreprocessor with the mean and
            standard deviation of the detector or segmentor to come; None: it does
            not normalise.
        init_cfg: See BaseModel.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A task is unknown, the decode head does not end with
            ``conv_seg``, or ``keep_identity`` does not fit the rest.
    """

    def __init__(self,
                 backbone: dict,
                 neck: dict | list,
                 decode_head: dict | None = None,
                 tasks: str | Sequence[str] = tuple(TASKS),
                 tail: dict | None = None,
                 freeze_backbone: bool = False,
                 keep_identity: bool = False,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(data_preprocessor or dict(type='ImgDataPreprocessor'),
                         init_cfg)
        check_flags(freeze_backbone=freeze_backbone, keep_identity=keep_identity)
        self.tasks = check_tasks(tasks)
        if keep_identity and decode_head is not None:
            raise ValueError('decode_head must be None with keep_identity=True: the '
                             'trained model has one')
        self.backbone = build_part(backbone)
        self.neck = build_part(neck)
        self.freeze_backbone = freeze_backbone or keep_identity
        self.decode_head = None if decode_head is None else \
            _without_classes(build_part(decode_head))
        if keep_identity:
            _check_identity(self.neck)
            self.neck.freeze_pyramid = True
            # It travels with the checkpoint: the exporter reads it.
            self.register_buffer('keep_identity', torch.ones((), dtype=torch.long))
        self.in_channels = image_channels(self.backbone)
        self.tail = RestorationTail(
            self._width(), len(self.tasks), self.in_channels, **tail or {})
        # FPT and some backbones freeze parts here. DDP counts what learns before
        # the first step.
        self.train()

    def _width(self) -> int:
        """Channels of the maps that the tail reads."""
        if self.decode_head is not None:
            return self.decode_head.channels
        last = self.neck[-1] if isinstance(self.neck, nn.Sequential) else self.neck
        width = getattr(last, 'out_channels', None)
        if not isinstance(width, int):
            raise ValueError('neck must tell out_channels, the channels of all its '
                             f'maps, got {type(last).__name__} with {width}')
        return width

    def train(self, mode: bool = True) -> RestorationPretrainer:
        """Set the training mode; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.requires_grad_(False)
            self.backbone.eval()
        return self

    def forward(self,
                inputs: Tensor,
                data_samples: list[BaseDataElement] | None = None,
                mode: str = 'tensor'
                ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Restore degraded images.

        Args:
            inputs: (B, C, H, W), degraded, normalised, of any size that the
                backbone takes.
            data_samples: One for each image, with its ``task`` and ``gt_img``, the
                clean image (C, H', W') in 0..255, which may be smaller where the
                batch is padded. ``'tensor'`` needs no clean images, and takes the
                model's first task for a sample without one.
            mode: ``'loss'``: a dict with the loss; ``'tensor'``: restored images
                (B, C, H, W), normalised; ``'predict'``: the samples with
                ``pred_img`` (C, H', W') in 0..255, not rounded.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: ``mode``, shapes or tasks are not as above.
        """
        check_map('inputs', inputs, self.in_channels)
        if mode not in ('loss', 'tensor', 'predict'):
            raise ValueError("mode must be 'loss', 'tensor' or 'predict', "
                             f'got {mode!r}')
        default = self.tasks[0] if mode == 'tensor' else None
        restored = self.restore(inputs, self.tasks_of(inputs, data_samples, default))
        if mode == 'tensor':
            return restored
        if mode == 'loss':
            dtype = accumulation_dtype(inputs)
            target = self.data_preprocessor(dict(
                inputs=[sample.gt_img for sample in data_samples]))['inputs'].to(dtype)
            if target.shape != inputs.shape:
                raise ValueError(
                    'clean images must have the size of degraded ones, as '
                    'Degrade(enlarge=True) makes them, got '
                    f'{tuple(target.shape)} and {tuple(inputs.shape)}')
            error, before = ((image.to(dtype) - target).square().mean((1, 2, 3))
                             for image in (restored, inputs))
            return dict(loss=(error / before.clamp(min=FLOOR)).mean())
        pixels = to_pixels(self.data_preprocessor, restored)
        for sample, image in zip(data_samples, pixels):
            height, width = sample.gt_img.shape[1:]
            sample.pred_img = image[:, :height, :width]
        return data_samples

    def restore(self, inputs: Tensor, tasks: Tensor) -> Tensor:
        """Restore normalised images (B, C, H, W) of tasks (B,), by number."""
        maps = self.neck(self.backbone(inputs))
        if self.decode_head is not None:
            maps = [self.decode_head(maps)]
        return self.tail(maps, inputs, tasks)

    def tasks_of(self, inputs: Tensor, data_samples: list[BaseDataElement] | None,
                 default: str | None = None) -> Tensor:
        """The numbers of the images' tasks: (B,).

        Args:
            inputs: (B, C, H, W).
            data_samples: One for each image.
            default: The task of a sample without one.

        Raises:
            ValueError: There is not a sample for each image, or its task is not
                one of the model's.
        """
        if data_samples is None or len(data_samples) != len(inputs):
            given = 'None' if data_samples is None else len(data_samples)
            raise ValueError(f'data_samples must tell the task of each of '
                             f'{len(inputs)} images, got {given}')
        names = [sample.get('task', default) for sample in data_samples]
        for name in names:
            if name not in self.tasks:
                raise ValueError(f'the task of an image must be one of {self.tasks}, '
                                 f'got {name!r}')
        return torch.tensor([self.tasks.index(name) for name in names],
                            device=inputs.device)

    def panels(self, batch: dict) -> list[Tensor]:
        """What :class:`ReconstructionHook` draws: clean, degraded, restored.

        Args:
            batch: As it comes from the data set.

        Returns:
            Three tensors (B, C, H, W) in 0..255, channels as in the files.
        """
        data = self.data_preprocessor(batch)
        inputs, samples = data['inputs'], data['data_samples']
        clean = self.data_preprocessor(dict(
            inputs=[sample.gt_img for sample in samples]))['inputs']
        restored = self(inputs, samples, mode='tensor')
        return [to_pixels(self.data_preprocessor, images)
                for images in (clean, inputs, restored)]


def build_part(cfg: dict | list) -> nn.Module:
    """Build a backbone, neck or head; parts of it are of the same library.

    Raises:
        TypeError: It is no config.
    """
    if isinstance(cfg, (list, tuple)):
        return nn.Sequential(*map(build_part, cfg))
    if not isinstance(cfg, dict):
        raise TypeError('backbone, neck and decode_head must be configs, got '
                        f'{type(cfg).__name__}')
    library = str(cfg.get('type')).partition('.')[0]
    if library in SCOPES:
        cfg = dict(cfg, _scope_=library)
    return MODELS.build(cfg)


def _without_classes(head: nn.Module) -> nn.Module:
    """Make a decode head return the features before its last layer.

    Raises:
        ValueError: It has no such layer.
    """
    if not isinstance(getattr(head, 'conv_seg', None), nn.Conv2d) or not isinstance(
            getattr(head, 'channels', None), int):
        raise ValueError('decode_head must be one of mmseg that ends with conv_seg, '
                         f'got {type(head).__name__}')
    # Classes are not learnt here; pixels that are dropped cannot be restored.
    head.conv_seg, head.dropout = nn.Identity(), None
    return head


def _check_identity(neck: nn.Module) -> None:
    """Require an FPT that returns the wrapped pyramid at the start.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(neck, FPT):
        raise ValueError('neck must be an FPT for keep_identity=True, got '
                         f'{type(neck).__name__}')
    if not any(isinstance(fusion, ResidualFusion) for fusion in neck.fusions) \
            or neck.pyramid is None:
        raise ValueError("neck must be an FPT with fusion='residual' around a "
                         'pyramid for keep_identity=True')
