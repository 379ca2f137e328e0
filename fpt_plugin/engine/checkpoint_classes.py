"""Compare the classes of a checkpoint with those of the test data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mmengine.hooks import Hook
from torch import nn

from ..io.checkpoints import some
from ..openmmlab.models import unwrapped

MAX_SHOWN = 20  # number of classes in a message


class CheckpointClassesHook(Hook):
    """Warns if the classes or heads of a checkpoint differ from the model's.

    mmengine skips tensors of another shape, so that a head may stay random, and
    it does not compare the order of the classes. tools/test.py adds this hook.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare before the weights are loaded."""
        loader = getattr(runner.test_loop, 'dataloader', None)
        meta = getattr(getattr(loader, 'dataset', None), 'metainfo', {})
        message = describe_mismatch(checkpoint, runner.model, meta.get('classes'))
        if message:
            warnings.warn(message, stacklevel=2)


def describe_mismatch(checkpoint: Mapping, model: nn.Module,
                      classes: Sequence[str] | None) -> str:
    """Compare a checkpoint with a model and the classes of a data set.

    Args:
        checkpoint: A checkpoint of mmengine's runner, or a state dict.
        model: A detector or segmentor, possibly in a wrapper.
        classes: Classes of the data set; None: it has none.

    Returns:
        A warning; '' if everything fits or the checkpoint has no classes.
    """
    with suppress(ValueError):  # a model of another kind
        model = unwrapped(model)
    own = model.state_dict()
    given = checkpoint.get('state_dict', checkpoint)
    names = {key: key.removeprefix('module.') for key in given}
    wrong = [name for key, name in names.items() if name in own
             and getattr(given[key], 'shape', None) != own[name].shape]
    reasons = []
    if wrong:
        reasons.append(f"{len(wrong)} tensors of another shape than the model's "
                       f'are left out and stay random ({some(wrong)})')
    trained = classes_of(checkpoint)
    if trained and classes and trained != tuple(map(str, classes)):
        order = ', in another order' if sorted(trained) == sorted(
            map(str, classes)) else ''
        reasons.append(f'it was trained on {_listed(trained)}, and is tested on '
                       f'{_listed(tuple(map(str, classes)))}{order}')
    if not reasons:
        return ''
    return ('the checkpoint does not fit the tested model and data, so its '
            f'metrics mean little: {"; ".join(reasons)}')


def classes_of(checkpoint: Mapping) -> tuple[str, ...]:
    """Return the classes of a checkpoint's training; empty if not stored."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    found = dict(meta.get('dataset_meta') or {})
    classes = found.get('classes') or found.get('CLASSES') or meta.get('CLASSES')
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ()


def _listed(classes: tuple[str, ...]) -> str:
    more = len(classes) - MAX_SHOWN
    rest = f', ... {more} more' if more > 0 else ''
    return f'{len(classes)} classes ({", ".join(classes[:MAX_SHOWN])}{rest})'
