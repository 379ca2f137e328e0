"""A checkpoint of other classes than those that a model is tested on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mmengine.hooks import Hook
from torch import nn

from ..io.checkpoints import some
from ..openmmlab.models import unwrapped

MOST = 20  # classes that a message names


class CheckpointClassesHook(Hook):
    """Warns of a checkpoint whose classes, or whose heads, are other ones.

    mmengine leaves out what differs in shape and tests the rest with a head of
    random numbers; classes in another order it does not see. tools/test.py
    adds this hook.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare before the weights are loaded."""
        loader = getattr(runner.test_loop, 'dataloader', None)
        meta = getattr(getattr(loader, 'dataset', None), 'metainfo', {})
        message = what_differs(checkpoint, runner.model, meta.get('classes'))
        if message:
            warnings.warn(message, stacklevel=2)


def what_differs(checkpoint: Mapping, model: nn.Module,
                 classes: Sequence[str] | None) -> str:
    """Compare a checkpoint with a model and the classes of a data set.

    Args:
        checkpoint: What mmengine's runner saved, or weights.
        model: A detector or segmentor, or what wraps one.
        classes: The data set's; None: it has none.

    Returns:
        A warning; '' where all is well, or where the checkpoint does not tell.
    """
    with suppress(ValueError):  # a model of another kind
        model = unwrapped(model)
    own = model.state_dict()
    given = checkpoint.get('state_dict', checkpoint)
    names = {key: key.removeprefix('module.') for key in given}
    wrong = [name for key, name in names.items() if name in own
             and getattr(given[key], 'shape', None) != own[name].shape]
    said = []
    if wrong:
        said.append(f'{len(wrong)} tensors of another shape than the model\'s are '
                    f'left out and stay random ({some(wrong)})')
    trained = classes_of(checkpoint)
    if trained and classes and trained != tuple(map(str, classes)):
        order = ', in another order' if sorted(trained) == sorted(
            map(str, classes)) else ''
        said.append(f'it was trained on {_listed(trained)}, and is tested on '
                    f'{_listed(tuple(map(str, classes)))}{order}')
    if not said:
        return ''
    return ('the checkpoint does not fit what is tested, and its metrics mean '
            f'little: {"; ".join(said)}')


def classes_of(checkpoint: Mapping) -> tuple[str, ...]:
    """The classes that a checkpoint was trained on; empty if it does not tell."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    found = dict(meta.get('dataset_meta') or {})
    classes = found.get('classes') or found.get('CLASSES') or meta.get('CLASSES')
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ()


def _listed(classes: tuple[str, ...]) -> str:
    more = f', ... {len(classes) - MOST} more' if len(classes) > MOST else ''
    return f'{len(classes)} classes ({", ".join(classes[:MOST])}{more})'
