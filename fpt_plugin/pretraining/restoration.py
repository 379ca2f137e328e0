"""Pre-train backbone, neck and decode head by restoring degraded images."""

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

# Added to the errors of the loss, for images that are almost clean, such as blurred
# plain areas. The square of half a grey level in normalised pixels.
MIN_ERROR = 1e-4


@register(MODELS)
class RestorationPretrainer(BaseModel):
    """Pre-train backbone, neck and decode head on images without labels.

    The model removes degradations from images, a random one per image. Unlike
    pre-training of a backbone, this also initialises neck and decode head (Decoder
    Denoising Pretraining, https://arxiv.org/abs/2205.11423; many tasks: IPT,
    https://arxiv.org/abs/2012.00364). ``backbone``, ``neck`` and ``decode_head``
    have the names they have in the later detector or segmentor.

    The loss is the mean change of the PSNR in dB, negative if images get better:
    0 for unchanged images, and -10 for a tenth of the squared error. The
    logarithm gives all tasks the same weight. Without it strong noise would
    outweigh all other tasks. An absolute error would be lowest without any change
    to thin streaks, which cover few pixels.

    Images come from the transforms :class:`~fpt_plugin.Degrade` with
    ``enlarge=True`` and :class:`~fpt_plugin.PackImage`, and mmengine's
    ImgDataPreprocessor.

    Args:
        backbone: Config of the backbone, with its library:
            ``dict(type='mmdet.ResNet', ...)``.
        neck: Config of the neck, such as ``dict(type='FPT', ...)``, or a list.
        decode_head: Config of a decode head of mmseg that ends with ``conv_seg``.
            This layer, which predicts classes, is removed, and the tail reads its
            input. None: the tail reads the neck's maps.
        tasks: Names of the degradations, see :class:`~fpt_plugin.Degrade`.
        tail: Arguments of the tail, such as ``dict(channels=64)``.
        freeze_backbone: Freeze the backbone, in evaluation mode.
        keep_identity: Train the branches of an FPT for a detector or segmentor
            that was trained with the plain pyramid, given by ``load_from``.
            Backbone and pyramid are frozen; only FPT's branches and fusions and
            the tail are trained. ``convert_weights pretrained`` then exports the
            branches without the fusions, so these start at zero and the trained
            model still gives the same outputs, bit for bit.
        data_preprocessor: mmengine's ImgDataPreprocessor with the mean and
            standard deviation of the later detector or segmentor; None: without
            normalisation.
        init_cfg: See BaseModel.

    Raises:
        TypeError: An argument has the wrong type.
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
            # Saved in the checkpoint, where convert_weights reads it.
            self.register_buffer('keep_identity', torch.ones((), dtype=torch.long))
        self.in_channels = image_channels(self.backbone)
        self.tail = RestorationTail(
            self._width(), len(self.tasks), self.in_channels, **tail or {})
        # FPT and some backbones freeze parts in train(). DDP reads requires_grad
        # before the first step.
        self.train()

    def _width(self) -> int:
        """Return the channels of the maps that the tail reads."""
        if self.decode_head is not None:
            return self.decode_head.channels
        last = self.neck[-1] if isinstance(self.neck, nn.Sequential) else self.neck
        width = getattr(last, 'out_channels', None)
        if not isinstance(width, int):
            raise ValueError('neck must have out_channels, the channels of all its '
                             f'maps, got {type(last).__name__} with {width}')
        return width

    def train(self, mode: bool = True) -> RestorationPretrainer:
        """Set the training mode; a frozen backbone stays in evaluation mode."""
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
                backbone accepts.
            data_samples: One per image, with its ``task`` and ``gt_img``, the
                clean image (C, H', W') in 0..255, which is smaller if the batch is
                padded. ``'tensor'`` needs no clean images; a sample without a task
                gets the model's first one.
            mode: ``'loss'``: a dict with the loss; ``'tensor'``: restored images
                (B, C, H, W), normalised; ``'predict'``: the samples with
                ``pred_img`` (C, H', W') in 0..255, not rounded.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: ``mode``, a shape or a task is wrong.
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
                    'clean images must have the size of degraded ones '
                    '(Degrade(enlarge=True)), got '
                    f'{tuple(target.shape)} and {tuple(inputs.shape)}')
            error, before = (  # (B,) each
                (image.to(dtype) - target).square().mean((1, 2, 3))
                for image in (restored, inputs))
            ratio = (error + MIN_ERROR) / (before + MIN_ERROR)
            return dict(loss=10 * ratio.log10().mean())
        pixels = to_pixels(self.data_preprocessor, restored)
        for sample, image in zip(data_samples, pixels):
            height, width = sample.gt_img.shape[1:]
            sample.pred_img = image[:, :height, :width]
        return data_samples

    def restore(self, inputs: Tensor, tasks: Tensor) -> Tensor:
        """Restore normalised images (B, C, H, W) of tasks (B,), given as indices."""
        maps = self.neck(self.backbone(inputs))
        if self.decode_head is not None:
            maps = [self.decode_head(maps)]
        return self.tail(maps, inputs, tasks)

    def tasks_of(self, inputs: Tensor, data_samples: list[BaseDataElement] | None,
                 default: str | None = None) -> Tensor:
        """Return the indices of the images' tasks (B,).

        Args:
            inputs: (B, C, H, W).
            data_samples: One per image.
            default: The task of a sample without one.

        Raises:
            ValueError: The number of samples differs from that of the images, or
                a task is not one of the model's.
        """
        if data_samples is None or len(data_samples) != len(inputs):
            given = 'None' if data_samples is None else len(data_samples)
            raise ValueError('data_samples must have the task of each of the '
                             f'{len(inputs)} images, got {given}')
        names = [sample.get('task', default) for sample in data_samples]
        for name in names:
            if name not in self.tasks:
                raise ValueError(f'the task of an image must be one of {self.tasks}, '
                                 f'got {name!r}')
        return torch.tensor([self.tasks.index(name) for name in names],
                            device=inputs.device)

    def panels(self, batch: dict) -> list[Tensor]:
        """Return the clean, degraded and restored images for pictures.

        Args:
            batch: A batch of the data loader.

        Returns:
            Three tensors (B, C, H, W) in 0..255, channels in the order of the
            files, for :class:`ReconstructionHook`.
        """
        data = self.data_preprocessor(batch)
        inputs, samples = data['inputs'], data['data_samples']
        clean = self.data_preprocessor(dict(
            inputs=[sample.gt_img for sample in samples]))['inputs']
        restored = self(inputs, samples, mode='tensor')
        return [to_pixels(self.data_preprocessor, images)
                for images in (clean, inputs, restored)]


def build_part(cfg: dict | list) -> nn.Module:
    """Build a backbone, neck or head, and its children from the same library.

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
    """Make a decode head return the input of its last layer, ``conv_seg``.

    Raises:
        ValueError: It has no such layer.
    """
    if not isinstance(getattr(head, 'conv_seg', None), nn.Conv2d) or not isinstance(
            getattr(head, 'channels', None), int):
        raise ValueError('decode_head must be one of mmseg that ends with conv_seg, '
                         f'got {type(head).__name__}')
    # There are no classes here, and dropped pixels could not be restored.
    head.conv_seg, head.dropout = nn.Identity(), None
    return head


def _check_identity(neck: nn.Module) -> None:
    """Require an FPT that returns the wrapped pyramid before training.

    Raises:
        ValueError: The neck is no such FPT.
    """
    if not isinstance(neck, FPT):
        raise ValueError('neck must be an FPT for keep_identity=True, got '
                         f'{type(neck).__name__}')
    if not any(isinstance(fusion, ResidualFusion) for fusion in neck.fusions) \
            or neck.pyramid is None:
        raise ValueError("neck must be an FPT with fusion='residual' around a "
                         'pyramid for keep_identity=True')
