"""Transfer weights of pre-training to a detector or a segmentor.

All tensors of the new file fit the model of the config. A checkpoint of another
backbone is refused; mmdet and mmseg would load only the tensors that fit.
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

# Key prefixes that pre-training models share with detectors and segmentors.
PARTS = ('backbone.', 'neck.', 'decode_head.')
TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'
# A checkpoint of RestorationPretrainer with this key gives only FPT's branches.
IDENTITY = 'keep_identity'
BRANCHES = tuple(f'neck.{child}.' for child in FPT.OWN_CHILDREN[1:4])
# Keys that either side may lack: norms of output maps that only one model has,
# counters, and the classification layer, which pre-training lacks.
_MAY_LACK = re.compile(
    r'backbone\.norm\d+\.(weight|bias)|.*\.num_batches_tracked'
    r'|decode_head\.conv_seg\.(weight|bias)')


@dataclass
class Transfer:
    """Transfer of a checkpoint to a model.

    Attributes:
        state_dict: The transferred tensors, by keys of the model.
        resized: Keys of bias tables that were resized to another window.
        new: Keys of the model that are not in the checkpoint.
        left: Keys of the checkpoint that are not used.
        keys: All keys of the model.
        trained: Keys of the model from the checkpoint of the trained model.
        source: The checkpoint of pre-training; None if not read from a file.
        onto: The checkpoint of the trained model, if any.
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
        """Return the lines of the report."""
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
            f'no source {len(self.new)} of {len(self.keys)} keys of the model: '
            + self._names(self.new, self.keys),
            f'not used  {len(self.left)} keys of the checkpoint: '
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
    """Write the weights of pre-training that fit the model of a config.

    The weights are loaded into the model before the file is written. From a
    RestorationPretrainer with ``keep_identity=True`` only the branches of FPT are
    used, so that its fusions start at zero.

    Args:
        source: A checkpoint of pre-training.
        out: The file to write.
        config: The config of the detector or segmentor.
        cfg_options: Settings that override the config's.
        onto: A trained checkpoint of the same model with the plain pyramid. Its
            weights are added to the file. The outputs of the trained model stay
            the same, bit for bit. It needs ``keep_identity=True``.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: ``source`` is no checkpoint of pre-training, or of another
            backbone, neck or head; ``onto`` is of another model; ``out`` is one
            of them or has a suffix that is not allowed.
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
    """Select the tensors of a checkpoint that fit a model, key by key.

    Args:
        given: Tensors of a pre-trained model.
        model: A detector or segmentor.
        source: The name of the checkpoint, for messages.

    Raises:
        ValueError: A part that both have does not fit.
    """
    target = model.state_dict()
    for requirement, keys in (
        (f'{source} must be a checkpoint of pre-training', given),
        (f'{type(model).__name__} must be a detector or segmentor', target)):
        if not _has(keys, 'backbone.'):
            raise ValueError(f'{requirement}, with keys that begin with backbone., '
                             f'got {some(keys)}')
    identity = IDENTITY in given
    parts = tuple(part for part in (BRANCHES if identity else PARTS)
                  if _has(given, part) and _has(target, part))
    if identity and not parts:
        raise ValueError(f'{source} was pre-trained with keep_identity=True, and the '
                         f'neck of {type(model).__name__} must be an FPT')
    taken, resized, mismatches = {}, [], []
    for key, value in given.items():
        if not key.startswith(parts) or key.endswith(INDEX):
            continue  # the index is computed from the window size
        if key not in target:
            if not _MAY_LACK.fullmatch(key):
                mismatches.append(f'the model has no {key}')
            continue
        if key.endswith(TABLE) and value.shape[1:] == target[key].shape[1:] \
                and len(value) != len(target[key]):
            value = resize_table(value, len(target[key]))
            resized.append(key)
        if value.shape != target[key].shape:
            mismatches.append(f'{key} is {tuple(value.shape)}, in the model '
                              f'{tuple(target[key].shape)}')
        taken[key] = value
    mismatches += [
        f'{source} has no {key}' for key in target
        if key.startswith(parts) and key not in taken and not key.endswith(INDEX)
        and not _MAY_LACK.fullmatch(key)
    ]
    if mismatches:
        raise ValueError(
            f'{source} was pre-trained with another '
            f"{' or '.join(part[:-1] for part in parts)} than that of "
            f'{type(model).__name__}; {len(mismatches)} tensors differ: '
            f"{'; '.join(mismatches[:3])}")
    keys = [key for key in target if not key.endswith(INDEX)]
    return Transfer(
        taken, resized,
        new=[key for key in keys if key not in taken],
        left=[key for key in given if key not in taken and not key.endswith(INDEX)],
        keys=keys)


def _add_trained(transfer: Transfer, model: nn.Module, onto: Path,
                 pretrained: Mapping[str, Tensor]) -> None:
    """Add the weights of a trained model with the plain pyramid.

    Raises:
        ValueError: They are of another model or of one with FPT, or differ from
            the weights that the branches were pre-trained with.
    """
    if IDENTITY not in pretrained:
        raise ValueError('onto needs a checkpoint that was pre-trained with '
                         'keep_identity=True, so that the outputs of the trained '
                         'model stay the same')
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
            f'{type(model).__name__}: it lacks {some(lacks) or "no keys"}, and the '
            f'model lacks {some(result.unexpected_keys) or "no keys"}')
    state_dict = model.state_dict()
    transfer.trained = [key for key in transfer.keys if not key.startswith(own)]
    different = [key for key in transfer.trained if key in pretrained
                 and not torch.equal(state_dict[key], pretrained[key])]
    if different:
        raise ValueError(
            f'onto={str(onto)!r} must be the load_from of the pre-training, whose '
            f'backbone and pyramid differ: {len(different)} tensors, '
            f'{some(different)}')
    transfer.state_dict.update({key: state_dict[key] for key in transfer.trained})
    transfer.new = [key for key in transfer.new if key.startswith(own)]
    transfer.onto = onto


def resize_table(table: Tensor, rows: int) -> Tensor:
    """Resize a table of position biases to another window, as mmdet and mmseg do."""
    old, new = (round(count**0.5) for count in (len(table), rows))
    maps = table.t().reshape(1, -1, old, old)  # (old * old, h) -> (1, h, old, old)
    maps = F.interpolate(
        maps.float(), (new, new), mode='bicubic')  # (1, h, new, new)
    return maps.view(-1, rows).t().to(table.dtype).contiguous()  # (new * new, h)


def usage(state_dict: Mapping[str, Tensor], model: nn.Module, cfg: Config,
          out: Path) -> list[str]:
    """Return the lines of a config that load the weights into its model."""
    backbone_only = all(key.startswith('backbone.') for key in state_dict)
    # init_cfg of backbones fails in both libraries on absolute position embeddings.
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
