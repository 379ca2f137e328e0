"""Detectors and segmentors of the OpenMMLab libraries, built from their configs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from .pins import SCOPES

# Arguments by which constructors of the libraries fetch weights.
_FETCHED = ('pretrained', 'teacher_ckpt')
# Where wrappers keep the model that they wrap.
_WRAPPED = ('module', 'student', 'detector')


def load_config(config: str | Path | Config,
                cfg_options: dict | None = None) -> Config:
    """Read a config that has a model.

    Args:
        config: A file, ``mmdet::`` or ``mmseg::`` and a file of that library's
            configs, or a config.
        cfg_options: Settings that override the config's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The config has no ``model`` or no ``default_scope``, or the
            levels of its neck and its transformer differ in number.
    """
    given = config if isinstance(config, (str, Path)) else 'the given config'
    if '::' in str(given):
        # As a base it is found as the shipped configs find theirs.
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
    """The ``default_scope`` of a config, or the library that its model is of.

    Configs that import what they name need no scope and have none.
    """
    model = config.get('model')
    kind = model.get('type') if isinstance(model, Mapping) else None
    package = str(getattr(kind, '__module__', '')).partition('.')[0]
    return config.get('default_scope') or (
        package if inspect.isclass(kind) and package in SCOPES else None)


def build_model(config: Config) -> nn.Module:
    """Build the model of a config; nothing is downloaded."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(without_weights(config.model))


def without_weights(node: object) -> object:
    """A copy of nested configs without names of weights."""
    if isinstance(node, Mapping):
        return type(node)({
            key: None if key in _FETCHED and isinstance(value, str) else
            without_weights(value)
            for key, value in node.items()
            if not (key == 'init_cfg' and is_pretrained(value))
        })
    if isinstance(node, (list, tuple)):
        return type(node)(map(without_weights, node))
    return node


def is_pretrained(init_cfg: object) -> bool:
    """Whether settings of an initialisation, or one of several, name weights."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(isinstance(cfg, Mapping)
               and cfg.get('type') in ('Pretrained', PretrainedInit)
               for cfg in cfgs)


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector inside test-time augmentation, a teacher's pair or DDP.

    Raises:
        ValueError: There is none.
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


class _Reached(Exception):
    """The first layer with weights is about to run."""


# Names of a layer's number of channels, and the dimension of its input.
_WIDTHS = dict(in_channels=1, num_features=1, in_features=-1)


@torch.no_grad()
def image_channels(model: nn.Module) -> int:
    """The channels of the images that a model takes.

    The first layer that runs tells them, whatever the backbone does before it.

    Args:
        model: A detector, a segmentor or a backbone; it is left as it is.
    """
    backbone = getattr(model, 'backbone', model)
    layers = [(layer, name) for layer in backbone.modules()
              if next(layer.children(), None) is None
              for name in _WIDTHS if isinstance(getattr(layer, name, None), int)
              and next(layer.parameters(), None) is not None]
    if not layers:
        return 3
    guess = max(getattr(*layers[0]), 1)
    found = []

    def ask(layer: nn.Module, args: tuple, name: str) -> None:
        found.append(guess * getattr(layer, name)
                     // args[0].shape[_WIDTHS[name]])
        raise _Reached

    handles = [layer.register_forward_pre_hook(partial(ask, name=name))
               for layer, name in layers]
    parameter = next(backbone.parameters())
    try:
        backbone(parameter.new_zeros(1, guess, 64, 64))
    except Exception:  # code of the libraries and of anyone
        pass
    finally:
        for handle in handles:
            handle.remove()
    return max(found[0], 1) if found else guess


def data_samples(images: Tensor) -> list[BaseDataElement]:
    """What the libraries' data samples tell the models, of images of full size.

    Some models ask for annotations in training: one object an image.
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
    """An exception in one line."""
    lines = str(error).strip().splitlines() or ['']
    message = textwrap.shorten(lines[0], 120, placeholder=' ...')
    return f'{type(error).__name__}: {message}'.rstrip(': ')
