"""Weights of pre-training for a detector or a segmentor.

What is written fits the model of one config, tensor by tensor. A checkpoint of
another backbone is refused: mmdet and mmseg would load what fits and go on.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn import functional as F

from ...io.checkpoints import (
    UNWRITABLE,
    read_state_dict,
    some,
    summarised,
    write_weights,
)
from ...io.files import check_writable
from ...necks import FPT
from ..common import load_model

# What pre-training and the models of the libraries have in common, by name.
PARTS = ('backbone.', 'neck.', 'decode_head.')
TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'
# What is taken of a RestorationPretrainer with this key: FPT's branches only.
IDENTITY = 'keep_identity'
BRANCHES = tuple(f'neck.{child}.' for child in FPT.OWN_CHILDREN[1:4])
# Norms of maps that one of the models does not give, counters, and the layer of the
# classes, which pre-training does not have.
_MAY_LACK = re.compile(
    r'backbone\.norm\d+\.(weight|bias)|.*\.num_batches_tracked'
    r'|decode_head\.conv_seg\.(weight|bias)')


@dataclass
class Transfer:
    """What a model takes of a checkpoint.

    Attributes:
        state_dict: The tensors that it takes, by its own keys.
        resized: Of these, the bias tables of another window.
        new: Keys of the model that stay as they are initialised.
        left: Keys of the checkpoint that the model does not take.
        keys: All keys of the model.
        trained: Keys of the model that a checkpoint of the trained one fills.
        source: The checkpoint, once it is read from a file.
        onto: The checkpoint of the trained model, if there is one.
        out: The file that was written.
        usage: Lines of a config that load it.
    """

    state_dict: dict[str, Tensor]
    resized: list[str]
    new: list[str]
    left: list[str]
    keys: list[str]
    trained: list[str] = field(default_factory=list)
    source: Path | None = None
    onto: Path | None = None
    out: Path | None = None
    usage: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report, line by line."""
        taken = [key for key in self.state_dict if key not in set(self.trained)]
        given = [*taken, *self.left]
        onto = [] if self.onto is None else [
            f'trained   {len(self.trained)} of {len(self.keys)} keys of the model, '
            f'from {self.onto}: ' + self._names(self.trained, self.keys)]
        return [
            f'read      {self.source}',
            f'taken     {len(taken)} of {len(given)} keys: '
            + self._names(taken, given),
            f'resized   {len(self.resized)} tables of another window: '
            + self._names(self.resized, self.resized),
            *onto,
            f'stays new {len(self.new)} of {len(self.keys)} keys of the model: '
            + self._names(self.new, self.keys),
            f'left over {len(self.left)} keys of the checkpoint: '
            + self._names(self.left, given),
            f'written   {self.out}, for',
            *self.usage,
        ]

    @staticmethod
    def _names(keys, among) -> str:
        return ', '.join(summarised(keys, among)) or 'nothing'


def convert_pretrained(source: str | Path,
                       out: str | Path,
                       config: str | Path | Config,
                       cfg_options: dict | None = None,
                       onto: str | Path | None = None) -> Transfer:
    """Write the weights of pre-training that the model of a config takes.

    The model is built and loaded with them before anything is written. Of a
    RestorationPretrainer with ``keep_identity=True`` the branches of FPT are taken
    and nothing else: its fusions start at zero.

    Args:
        source: A checkpoint of pre-training.
        out: The file to write.
        config: Of the detector or segmentor.
        cfg_options: Settings that override the config's.
        onto: A checkpoint of the same model with the plain pyramid, trained. Its
            weights are written, too, and the model of both computes what it did,
            bit for bit. It needs ``keep_identity=True``.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: ``source`` is no checkpoint of pre-training, or of another
            backbone, neck or head; ``onto`` is of another model; ``out`` would
            harm them.
    """
    source, out = Path(source), Path(out)
    onto = None if onto is None else Path(onto)
    check_writable(out, refused=UNWRITABLE, read=[source, *[onto] * (onto is not None)])
    given = read_state_dict(source).state_dict
    model, cfg = load_model(config, cfg_options)
    transfer = transferred(given, model, str(source))
    result = model.load_state_dict(transfer.state_dict, strict=False)
    if result.unexpected_keys:  # a model that renames keys as it loads
        raise ValueError(f'{type(model).__name__} does not take '
                         f'{some(result.unexpected_keys)} of {source}')
    if onto is not None:
        _add_trained(transfer, model, onto, given)
    write_weights(transfer.state_dict, out)
    transfer.source, transfer.out = source, out
    transfer.usage = usage(transfer.state_dict, model, cfg, out)
    return transfer


def transferred(given: Mapping[str, Tensor], model: nn.Module,
                source: str) -> Transfer:
    """Compare a checkpoint with a model, key by key.

    Args:
        given: Tensors of a pre-trained model.
        model: A detector or segmentor.
        source: The name of the checkpoint, for messages.

    Raises:
        ValueError: A part that both have does not fit.
    """
    wanted = model.state_dict()
    for what, keys in ((f'{source} must be a checkpoint of pre-training', given),
                       (f'{type(model).__name__} must be a detector or segmentor',
                        wanted)):
        if not _has(keys, 'backbone.'):
            raise ValueError(f'{what}, with keys that begin with backbone., got '
                             f'{some(keys)}')
    identity = IDENTITY in given
    parts = tuple(part for part in (BRANCHES if identity else PARTS)
                  if _has(given, part) and _has(wanted, part))
    if identity and not parts:
        raise ValueError(f'{source} was pre-trained with keep_identity=True, and the '
                         f'neck of {type(model).__name__} must be an FPT')
    taken, resized, wrong = {}, [], []
    for key, value in given.items():
        if not key.startswith(parts) or key.endswith(INDEX):
            continue  # the index is computed from the window
        if key not in wanted:
            if not _MAY_LACK.fullmatch(key):
                wrong.append(f'the model has no {key}')
            continue
        if key.endswith(TABLE) and value.shape[1:] == wanted[key].shape[1:] \
                and len(value) != len(wanted[key]):
            value = resize_table(value, len(wanted[key]))
            resized.append(key)
        if value.shape != wanted[key].shape:
            wrong.append(f'{key} is {tuple(value.shape)}, in the model '
                         f'{tuple(wanted[key].shape)}')
        taken[key] = value
    wrong += [
        f'{source} has no {key}' for key in wanted
        if key.startswith(parts) and key not in taken and not key.endswith(INDEX)
        and not _MAY_LACK.fullmatch(key)
    ]
    if wrong:
        raise ValueError(
            f'{source} was pre-trained with another '
            f"{' or '.join(part[:-1] for part in parts)} than that of "
            f'{type(model).__name__}; {len(wrong)} tensors differ: '
            f"{'; '.join(wrong[:3])}")
    keys = [key for key in wanted if not key.endswith(INDEX)]
    return Transfer(
        taken, resized,
        new=[key for key in keys if key not in taken],
        left=[key for key in given if key not in taken and not key.endswith(INDEX)],
        keys=keys)


def _add_trained(transfer: Transfer, model: nn.Module, onto: Path,
                 pretrained: Mapping[str, Tensor]) -> None:
    """Add the weights of a trained model that has the plain pyramid.

    Raises:
        ValueError: They are of another model or of one with FPT, or not those that
            the branches were pre-trained on.
    """
    if IDENTITY not in pretrained:
        raise ValueError('onto needs a checkpoint that was pre-trained with '
                         'keep_identity=True, so that the trained model computes '
                         'what it did')
    given = read_state_dict(onto).state_dict
    own = (*BRANCHES, 'neck.fusions.')
    found = [key for key in given if key.startswith(own)]
    if found:
        raise ValueError(f'onto must be a checkpoint of the model with the plain '
                         f'pyramid, got one with {some(found)}')
    model.load_state_dict(transfer.state_dict, strict=False)
    try:
        result = model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        raise ValueError(f'onto={str(onto)!r} is of another model: {error}') from error
    lacks = [key for key in result.missing_keys if not key.startswith(own)]
    if lacks or result.unexpected_keys:
        raise ValueError(
            f'onto={str(onto)!r} is of another model than this '
            f'{type(model).__name__}: it lacks {some(lacks) or "nothing"} and has '
            f'{some(result.unexpected_keys) or "nothing"} beside it')
    state_dict = model.state_dict()
    transfer.trained = [key for key in transfer.keys if not key.startswith(own)]
    other = [key for key in transfer.trained if key in pretrained
             and not torch.equal(state_dict[key], pretrained[key])]
    if other:
        raise ValueError(
            f'onto={str(onto)!r} must be the load_from of the pre-training, whose '
            f'backbone and pyramid are others: {len(other)} tensors differ, '
            f'{some(other)}')
    transfer.state_dict.update({key: state_dict[key] for key in transfer.trained})
    transfer.new = [key for key in transfer.new if key.startswith(own)]
    transfer.onto = onto


def resize_table(table: Tensor, rows: int) -> Tensor:
    """Position biases of another window, as mmdet and mmseg resize them."""
    old, new = (round(count**0.5) for count in (len(table), rows))
    maps = table.t().reshape(1, -1, old, old)
    maps = F.interpolate(maps.float(), (new, new), mode='bicubic')
    return maps.view(-1, rows).t().to(table.dtype).contiguous()


def usage(state_dict: Mapping[str, Tensor], model: nn.Module, cfg: Config,
          out: Path) -> list[str]:
    """Lines of a config that load a file of weights into its model."""
    backbone_only = all(key.startswith('backbone.') for key in state_dict)
    # Both libraries fail on positions in a file that a backbone begins with.
    if not backbone_only or 'backbone.absolute_pos_embed' in state_dict:
        return [f'load_from = {str(out)!r}']
    parameters = inspect.signature(type(model.backbone)).parameters
    native = 'convert_weights=False, ' if 'convert_weights' in parameters else ''
    pretrained = 'pretrained=None, ' if cfg.model.get('pretrained') else ''
    return [
        f'model = dict({pretrained}backbone=dict({native}init_cfg=dict(',
        f"    type='Pretrained', checkpoint={str(out)!r})))",
    ]


def _has(keys: Mapping[str, object], part: str) -> bool:
    return any(key.startswith(part) for key in keys)
