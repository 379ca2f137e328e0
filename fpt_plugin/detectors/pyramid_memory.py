"""FPT as the encoder: a DETR whose decoder reads the neck's pyramid.

The encoder of Deformable DETR (https://arxiv.org/abs/2010.04159) exchanges
information between the pixels of all levels. FPT does this too, so its maps can
be the decoder's memory.
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

BASE_DETECTOR = 'mmdet.DeformableDETR'


@register(MODELS)
def PyramidMemoryDETR(detector: str | type = BASE_DETECTOR,
                      encoder: None = None,
                      **detector_args) -> nn.Module:
    """Build a detector of the Deformable DETR family without its encoder.

    The maps of the neck, flattened level by level, are the memory of the
    decoder; with FPT as the neck, FPT is the encoder. Everything else is
    mmdet's: positions, queries, decoder, head, losses, ``with_box_refine`` and
    ``as_two_stage``. In a config of Deformable DETR, write

    .. code:: python

        model = dict(
            type='PyramidMemoryDETR',
            encoder=None,
            neck=dict(type='FPT', preset='full', num_levels=4,
                      pyramid=dict(type='ChannelMapper')))

    and in a config of DINO also ``detector='DINO'``. mmdet hard-codes the class
    of the encoder, so a config cannot replace it.

    Only the encoder used the embeddings of position and level; FPT needs none.
    The parameter ``level_embed`` is kept, for checkpoints, and frozen. A
    checkpoint of the plain detector loads except for its encoder; a warning
    gives the number of skipped tensors.

    Args:
        detector: mmdet's class or its registered name.
        encoder: Must be None; a config would have no effect.
        **detector_args: The arguments of that class.

    Returns:
        An instance of a subclass of mmdet's class.

    Raises:
        TypeError: ``detector`` is no class of that family or reads text, or
            the class rejects its arguments.
        KeyError: ``detector`` is not registered, or mmdet is not installed.
        ValueError: There is an encoder, no neck or no decoder, or the numbers
            of levels differ.
    """
    check_versions()
    if encoder is not None:
        raise ValueError("encoder must be None, because the neck's pyramid is "
                         f'the memory, got {encoder}')
    for name in ('neck', 'decoder'):
        if detector_args.get(name) is None:
            raise ValueError(f'{name} must be a config, got None: the decoder '
                             "reads the neck's pyramid")
    return _without_encoder(_detector_class(detector))(**detector_args)


def _detector_class(name: str | type) -> type:
    """Return the class of a name, in the active scope or mmdet's."""
    for scope in (None, 'mmdet'):
        with MODELS.switch_scope_and_registry(scope) as registry:
            cls, base = lookup(registry, name), lookup(registry, BASE_DETECTOR)
        if cls is not None and base is not None:
            break
    else:
        raise KeyError('detector must be in a registry, and mmdet installed, '
                       f'got {name!r}')
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise TypeError(f'detector must be {BASE_DETECTOR} or a subclass of it, '
                        f'got {name!r}')
    if 'language_model' in inspect.signature(cls).parameters:
        raise TypeError('detector must read only images, got '
                        f'{name!r}, whose encoder reads text too')
    return cls


@cache
def _without_encoder(detector: type) -> type:
    """Make a subclass of a detector; it has no importable name."""

    class PyramidMemoryDetector(detector):

        def __init__(self, *args, decoder: dict, **kwargs) -> None:
            super().__init__(
                *args, encoder=_placeholder_encoder(decoder), decoder=decoder,
                **kwargs)
            self.encoder = PyramidMemory()
            # Only the encoder read it; it would never get a gradient.
            self.level_embed.requires_grad_(False)
            check_levels(self)

        def pre_transformer(self, mlvl_feats: tuple[Tensor, ...],
                            *args, **kwargs) -> tuple[dict, dict]:
            """Check the maps (B, C, H_i, W_i) before mmdet flattens them."""
            check_maps(mlvl_feats, self.num_feature_levels)
            channels = [x.shape[1] for x in mlvl_feats]
            if set(channels) != {self.embed_dims}:
                raise ValueError("the neck's maps must have embed_dims="
                                 f'{self.embed_dims} channels, those of the '
                                 f'decoder, got {channels}')
            return super().pre_transformer(mlvl_feats, *args, **kwargs)

        def __reduce__(self) -> tuple:
            """Pickle and copy through mmdet's class, which can be imported."""
            return _uninitialised, (detector, ), self.__dict__

    PyramidMemoryDetector.__name__ = f'PyramidMemory{detector.__name__}'
    PyramidMemoryDetector.__qualname__ = PyramidMemoryDetector.__name__
    return PyramidMemoryDetector


def _uninitialised(detector: type) -> nn.Module:
    """Create an object whose state pickle or copy sets afterwards."""
    cls = _without_encoder(detector)
    return cls.__new__(cls)


def _placeholder_encoder(decoder: dict) -> dict:
    """Return the config of the smallest encoder that mmdet can build.

    PyramidMemory replaces it. mmdet takes the width of the model from its first
    layer, DDQ-DETR also the number of heads; both are those of the decoder.
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
    """Replaces the encoder and returns the pyramid unchanged."""

    def forward(self, query: Tensor, **kwargs) -> Tensor:
        """Return the flattened maps (B, sum of H_i W_i, C); ignore the rest."""
        return query

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Warn of an encoder's weights, which remain unexpected keys."""
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        given = [key for key in state_dict if key.startswith(prefix)]
        if given:
            numbers = sum(state_dict[key].numel() for key in given)
            print_log(
                f'{len(given)} tensors ({numbers:,} numbers) of the '
                'checkpoint are left out, those of its encoder '
                f'({given[0]}, ...): the pyramid of the neck is the memory '
                'here, and the decoder was trained with another memory.',
                logger='current',
                level=logging.WARNING)
