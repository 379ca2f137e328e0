"""FPT as the encoder: a DETR whose decoder reads the neck's pyramid.

Deformable DETR, https://arxiv.org/abs/2010.04159, lets the pixels of all levels
look at each other in an encoder. That is what FPT does as well, so its maps can
be the memory themselves.
"""

from __future__ import annotations

import inspect
import logging
from functools import cache

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..openmmlab.registry import lookup, register
from ..openmmlab.versions import check_versions
from .levels import check_levels, check_maps

FAMILY = 'mmdet.DeformableDETR'


@register(MODELS)
def PyramidMemoryDETR(detector: str | type = FAMILY,
                      encoder: None = None,
                      **detector_args) -> nn.Module:
    """A detector of the Deformable DETR family without its encoder.

    The maps of the neck, flattened level by level, are the memory that the
    decoder reads; with FPT as the neck, FPT is the encoder. All else is the
    host's: positions, queries, decoder, head, losses, ``with_box_refine`` and
    ``as_two_stage``. Over a config of Deformable DETR it takes

    .. code:: python

        model = dict(
            type='PyramidMemoryDETR',
            encoder=None,
            neck=dict(type='FPT', preset='full', num_levels=4,
                      pyramid=dict(type='ChannelMapper')))

    and over one of DINO ``detector='DINO'`` besides. mmdet builds the class of
    its encoder by name, so no config alone can do it.

    The encoder alone read the embeddings of position and level; FPT has none.
    The parameter ``level_embed`` therefore stays where checkpoints look for it,
    and is frozen. A checkpoint of the plain detector loads but for its encoder,
    which a warning counts.

    Args:
        detector: The host's class, by its name in a registry.
        encoder: None; a config would have no effect.
        **detector_args: The arguments of that class.

    Returns:
        An instance of a subclass of the host's class.

    Raises:
        TypeError: ``detector`` is no class of that family, or reads text; the
            class refuses its arguments.
        KeyError: No registry knows ``detector``, or mmdet is not installed.
        ValueError: There is an encoder, no neck or no decoder, or the numbers
            of levels differ.
    """
    check_versions()
    if encoder is not None:
        raise ValueError("encoder must be None, as the neck's pyramid is the "
                         f'memory, got {encoder}')
    for name in ('neck', 'decoder'):
        if detector_args.get(name) is None:
            raise ValueError(f'{name} must be a config, got None: the decoder '
                             "reads the neck's pyramid")
    return _without_encoder(_host_class(detector))(**detector_args)


def _host_class(name: str | type) -> type:
    """The class of a name, in the active scope or mmdet's."""
    for scope in (None, 'mmdet'):
        with MODELS.switch_scope_and_registry(scope) as registry:
            host, family = lookup(registry, name), lookup(registry, FAMILY)
        if host is not None and family is not None:
            break
    else:
        raise KeyError('detector must be in a registry, and mmdet installed, '
                       f'got {name!r}')
    if not (inspect.isclass(host) and issubclass(host, family)):
        raise TypeError(f'detector must be {FAMILY} or a class made of it, got '
                        f'{name!r}')
    if 'language_model' in inspect.signature(host).parameters:
        raise TypeError('detector must read images alone, got '
                        f'{name!r}, whose encoder reads text too')
    return host


@cache
def _without_encoder(host: type) -> type:
    """A subclass of a host's detector, which cannot be imported by name."""

    class PyramidMemoryDetector(host):

        def __init__(self, *args, decoder: dict, **kwargs) -> None:
            super().__init__(
                *args, encoder=_narrow_encoder(decoder), decoder=decoder,
                **kwargs)
            self.encoder = PyramidMemory()
            # Nobody reads it: a gradient would never come.
            self.level_embed.requires_grad_(False)
            check_levels(self)

        def pre_transformer(self, mlvl_feats: tuple[Tensor, ...],
                            *args, **kwargs) -> tuple[dict, dict]:
            """The host's, of as many maps as it has levels."""
            check_maps(mlvl_feats, self.num_feature_levels)
            channels = [x.shape[1] for x in mlvl_feats]
            if set(channels) != {self.embed_dims}:
                raise ValueError("the neck's maps must have embed_dims="
                                 f'{self.embed_dims} channels, those of the '
                                 f'decoder, got {channels}')
            return super().pre_transformer(mlvl_feats, *args, **kwargs)

        def __reduce__(self) -> tuple:
            """Pickle and copy by the host's class, which has a name."""
            return _blank, (host, ), self.__dict__

    PyramidMemoryDetector.__name__ = f'PyramidMemory{host.__name__}'
    PyramidMemoryDetector.__qualname__ = PyramidMemoryDetector.__name__
    return PyramidMemoryDetector


def _blank(host: type) -> nn.Module:
    """A detector that its state is to fill."""
    cls = _without_encoder(host)
    return cls.__new__(cls)


def _narrow_encoder(decoder: dict) -> dict:
    """The smallest encoder that the host builds, soon to be replaced.

    The host reads its width off the first layer, DDQ-DETR the number of heads
    besides; they are those of the decoder.
    """
    attention = (decoder.get('layer_cfg') or {}).get('self_attn_cfg') or {}
    width = attention.get('embed_dims', 256)
    return dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=width, num_heads=attention.get('num_heads', 8)),
            ffn_cfg=dict(embed_dims=width, feedforward_channels=1)))


class PyramidMemory(nn.Module):
    """Stands where the encoder stood, and gives the pyramid on as it is."""

    def forward(self, query: Tensor, **kwargs) -> Tensor:
        """The flattened maps (B, sum of H_i W_i, C); all else is ignored."""
        return query

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Count what a checkpoint holds of an encoder; it stays unexpected."""
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        given = [key for key in state_dict if key.startswith(prefix)]
        if given:
            numbers = sum(state_dict[key].numel() for key in given)
            print_log(
                f'{len(given)} tensors ({numbers:,} numbers) of the '
                'checkpoint are left out, those of its encoder '
                f'({given[0]}, ...): the pyramid of the neck is the memory '
                'here, and what follows it was trained with another one.',
                logger='current',
                level=logging.WARNING)
