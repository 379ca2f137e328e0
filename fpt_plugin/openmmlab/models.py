"""Build detectors and segmentors of the OpenMMLab libraries from configs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.model import PretrainedInit, is_model_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from .pins import SCOPES

# Constructor arguments that make the libraries download weights.
_WEIGHT_ARGUMENTS = ('pretrained', 'teacher_ckpt')
# Attributes in which wrappers keep the wrapped model.
_WRAPPED = ('module', 'student', 'detector')


def without_wrapper(model: nn.Module) -> nn.Module:
    """Return the model inside DDP or FSDP, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def load_config(config: str | Path | Config,
                cfg_options: dict | None = None) -> Config:
    """Read a config that has a model.

    Args:
        config: A file; ``mmdet::`` or ``mmseg::`` followed by a file in that
            library's configs; or a config.
        cfg_options: Settings that override the config's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The config has no ``model`` or no ``default_scope``, or the
            library before ``::`` is unknown.
    """
    given = config if isinstance(config, (str, Path)) else 'the given config'
    if '::' in str(given):
        # Read it as a base, so that it is found like bases of shipped configs.
        library = str(config).partition('::')[0]
        if library not in MODULE2PACKAGE:
            raise ValueError(f'the library before :: must be one of '
                             f'{sorted(MODULE2PACKAGE)}, got {library!r} in '
                             f'{config}')
        config = Config.fromstring(f'_base_ = {str(config)!r}', '.py')
    elif not isinstance(config, Config):
        config = Config.fromfile(config)
    if cfg_options:
        config.merge_from_dict(cfg_options)
    config.default_scope = scope_of(config)
    if config.get('model') is None:
        raise ValueError(f'the config must set model, got none in {given}')
    if config.default_scope is None:
        raise ValueError(f'the config must set default_scope, such as one of '
                         f'{SCOPES}, got None in {given}')
    return config


def scope_of(config: Config) -> str | None:
    """Return the ``default_scope`` of a config, or the library of its model.

    Configs in Python style import their classes and have no scope.
    """
    model = config.get('model')
    kind = model.get('type') if isinstance(model, Mapping) else None
    package = str(getattr(kind, '__module__', '')).partition('.')[0]
    return config.get('default_scope') or (
        package if inspect.isclass(kind) and package in SCOPES else None)


def build_model(config: Config) -> nn.Module:
    """Build the model of a config without downloading weights."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(without_weights(config.model))


def without_weights(node: object) -> object:
    """Copy nested configs without the settings that load weights."""
    if isinstance(node, Mapping):
        return type(node)({
            key: None if key in _WEIGHT_ARGUMENTS and isinstance(value, str) else
            without_weights(value)
            for key, value in node.items()
            if not (key == 'init_cfg' and is_pretrained(value))
        })
    if isinstance(node, (list, tuple)):
        return type(node)(map(without_weights, node))
    return node


def is_pretrained(init_cfg: object) -> bool:
    """Return whether an ``init_cfg``, or one of a list of them, loads weights."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(isinstance(cfg, Mapping)
               and cfg.get('type') in ('Pretrained', PretrainedInit)
               for cfg in cfgs)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the detector inside test-time augmentation, teacher-student or DDP.

    Raises:
        ValueError: The model has no backbone and wraps no model that has one.
    """
    inner = model
    while not hasattr(inner, 'backbone'):
        found = [
            name for name in _WRAPPED
            if isinstance(getattr(inner, name, None), nn.Module)
        ]
        if not found:
            raise ValueError(
                'the model must be a detector or segmentor with a backbone, '
                f'got {type(model).__name__}; neck_complexity counts a neck')
        inner = getattr(inner, found[0])
    return inner


class _FirstLayerReached(Exception):
    """Stops a forward pass at the first layer with weights."""


# Attributes that hold a layer's input channels: the channel dimension of its input.
_CHANNEL_DIMENSIONS = dict(in_channels=1, num_features=1, in_features=-1)


@torch.no_grad()
def image_channels(model: nn.Module) -> int:
    """Return the number of channels of a model's input images.

    A forward pass is started and stopped at the first layer with weights. This
    also works for backbones that reshape the image before that layer.

    Args:
        model: A detector, a segmentor or a backbone; it is not changed.
    """
    backbone = getattr(model, 'backbone', model)
    layers = [(layer, name) for layer in backbone.modules()
              if next(layer.children(), None) is None
              for name in _CHANNEL_DIMENSIONS
              if isinstance(getattr(layer, name, None), int)
              and next(layer.parameters(), None) is not None]
    if not layers:
        return 3
    guess = max(getattr(*layers[0]), 1)
    found = []

    def record(layer: nn.Module, args: tuple, name: str) -> None:
        # Modules before the layer may multiply the channels (space-to-depth).
        found.append(guess * getattr(layer, name)
                     // args[0].shape[_CHANNEL_DIMENSIONS[name]])
        raise _FirstLayerReached

    handles = [layer.register_forward_pre_hook(partial(record, name=name))
               for layer, name in layers]
    parameter = next(backbone.parameters())
    try:
        backbone(parameter.new_zeros(1, guess, 64, 64))
    except Exception:  # any backbone's code, and _FirstLayerReached
        pass
    finally:
        for handle in handles:
            handle.remove()
    return max(found[0], 1) if found else guess


def data_samples(images: Tensor) -> list[BaseDataElement]:
    """Return data samples for images without padding or scaling.

    Each has one annotated object, which some models need in training.
    """
    height, width = images.shape[2:]
    sizes = {
        f'{name}_shape': (height, width)
        for name in ('img', 'ori', 'pad', 'batch_input')
    }
    samples = []
    for _ in images:
        sample = BaseDataElement(
            metainfo=dict(
                **sizes,
                scale_factor=(1., 1.),
                padding_size=[0, 0, 0, 0],
                flip=False))
        sample.gt_instances = InstanceData(
            bboxes=images.new_tensor([[0, 0, width / 2, height / 2]]),
            labels=images.new_zeros(1, dtype=torch.long))
        samples.append(sample)
    return samples


def describe(error: Exception) -> str:
    """Return an exception's type and message in one line."""
    lines = str(error).strip().splitlines() or ['']
    message = textwrap.shorten(lines[0], 120, placeholder=' ...')
    return f'{type(error).__name__}: {message}'.rstrip(': ')
