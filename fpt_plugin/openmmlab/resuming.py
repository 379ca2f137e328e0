"""A training can only go on from a checkpoint of the same model and optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import wraps

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from ..io.checkpoints import some, summarised

# What optimizers keep in the shape of a parameter.
_LIKE_PARAMETERS = ('momentum_buffer', 'exp_avg', 'exp_avg_sq')


def name_what_cannot_be_resumed() -> None:
    """Let mmengine's runner say why a training cannot go on from a checkpoint.

    A plain model's checkpoint that is resumed with a neck more ends in
    ``parameter group that doesn't match the size of optimizer's group``,
    another optimizer's in ``KeyError: 'step'``, bare weights in
    ``KeyError: 'meta'``; where the numbers of tensors agree by chance, the
    optimizer's state goes to other parameters in silence.
    """
    original = Runner.resume
    if getattr(original, 'names_what_differs', False):
        return

    @wraps(original)
    def resume(self, filename, resume_optimizer=True, *args, **kwargs):
        check = _ResumeCheck(filename, resume_optimizer)
        self._hooks.append(check)
        try:
            original(self, filename, resume_optimizer, *args, **kwargs)
        finally:
            self._hooks.remove(check)

    resume.names_what_differs = True
    Runner.resume = resume


class _ResumeCheck(Hook):
    """Looks at a checkpoint before anything of it is loaded."""

    def __init__(self, filename: str, resume_optimizer: bool) -> None:
        self.filename, self.resume_optimizer = filename, resume_optimizer

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) \
            else runner.model
        wrapper = runner.optim_wrapper if self.resume_optimizer else None
        reasons = list(what_differs(checkpoint, model, wrapper))
        if reasons:
            raise ValueError(
                f'no training can go on from {self.filename}: it '
                f'{" and ".join(reasons)}. To begin one with its weights, set '
                f'load_from={str(self.filename)!r} and leave out resume '
                '(--cfg-options load_from=..., without --resume)')


def what_differs(checkpoint: Mapping, model: nn.Module,
                 wrapper: object = None) -> Iterator[str]:
    """Say why the state of a training is not that of a model's.

    Args:
        checkpoint: What mmengine's runner saved.
        model: The model to go on with.
        wrapper: The optimizer's; None: its state is not looked at.

    Yields:
        Reasons, each to follow the word ``it``; none where all is well.
    """
    lacking = [key for key in ('meta', 'message_hub') if key not in checkpoint]
    if lacking:
        yield f'holds weights alone, without {" and ".join(lacking)}'
        return
    if wrapper is None:
        return
    saved = _optimizers(checkpoint.get('optimizer') or {}, wrapper)
    unlike = [reason for state, optimizer in saved
              for reason in _optimizer_differs(state, optimizer)]
    new, gone = _parameters_that_differ(checkpoint.get('state_dict', {}), model)
    if new:
        yield f'was trained without {new}'
    if gone and (new or unlike):
        yield f'was trained with {gone}, which the model has not'
    yield from unlike if not (new or gone) else [
        reason for reason in unlike if 'another optimizer' in reason]
    if not (new or unlike):  # an optimizer without a state compares no shapes
        yield from _parameters_of_another_shape(
            checkpoint.get('state_dict', {}), model)


def _optimizers(saved: Mapping,
                wrapper: object) -> Iterator[tuple[Mapping, Optimizer]]:
    """Each saved state and the optimizer that would get it."""
    if isinstance(wrapper, OptimWrapperDict):
        for name, part in wrapper.items():
            yield from _optimizers(saved.get(name) or {}, part)
    elif isinstance(wrapper, OptimWrapper) and 'param_groups' in saved:
        yield saved, wrapper.optimizer


def _optimizer_differs(saved: Mapping, optimizer: Optimizer) -> Iterator[str]:
    before, now = saved['param_groups'], optimizer.param_groups
    # Versions of torch add settings; another optimizer lacks some as well.
    known, wanted = ({name for group in groups for name in group
                      if not name.startswith(('initial_', 'param'))}
                     for groups in (before, now))
    if known - wanted and wanted - known:
        yield ('was trained by another optimizer than this '
               f'{type(optimizer).__name__}, one with '
               f'{some(sorted(known - wanted))} instead of '
               f'{some(sorted(wanted - known))}')
    counts = [[len(group['params']) for group in groups]
              for groups in (before, now)]
    if counts[0] != counts[1]:
        yield (f'was trained with {sum(counts[0])} tensors in {len(before)} groups '
               f'of the optimizer, where there are {sum(counts[1])} in {len(now)}')
        return
    numbers = [number for group in before for number in group['params']]
    parameters = [p for group in now for p in group['params']]
    for number, parameter in zip(numbers, parameters):
        state = saved['state'].get(number) or {}
        for name in _LIKE_PARAMETERS:
            value = state.get(name)
            if value is not None and value.shape != parameter.shape:
                yield (f'has the state of other parameters: {name} of '
                       f'{[*value.shape]} for one of {[*parameter.shape]}')
                return


def _parameters_that_differ(state_dict: Mapping,
                            model: nn.Module) -> tuple[str, str]:
    """Parameters that are not in a checkpoint, and what only the checkpoint has."""
    own = model.state_dict()
    given = {key.removeprefix('module.') for key in state_dict}
    # FPT takes the keys of the plain pyramid for those of the wrapped one.
    aliases = {key: _without_pyramid(key) for key in own}
    new = [name for name, _ in model.named_parameters()
           if name in own and not given & {name, aliases[name]}]
    gone = given - set(own) - set(aliases.values())
    return tuple(f'{len(keys)} tensors ({some(summarised(keys, among), 3)})'
                 if keys else '' for keys, among in (
                     (new, own), ([k for k in state_dict if k in gone], given)))


def _parameters_of_another_shape(state_dict: Mapping,
                                 model: nn.Module) -> Iterator[str]:
    """What mmengine would leave out with a warning, so that it begins anew."""
    own = model.state_dict()
    given = {key.removeprefix('module.'): value
             for key, value in state_dict.items()}
    wrong = [name for name, _ in model.named_parameters() if name in own
             and name in given and given[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        yield (f'has {len(wrong)} parameters of another shape, such as {name} of '
               f'{[*given[name].shape]} for {[*own[name].shape]}')


def _without_pyramid(key: str) -> str:
    return '.'.join(part for part in key.split('.') if part != 'pyramid')
