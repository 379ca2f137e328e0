"""Explain why a training cannot resume from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import wraps

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from ..io.checkpoints import some, summarised
from .models import without_wrapper

# Optimizer states that have the shape of their parameter.
_PARAMETER_SHAPED = ('momentum_buffer', 'exp_avg', 'exp_avg_sq')


def explain_failed_resumes() -> None:
    """Make mmengine's runner explain why a training cannot resume.

    Without it, the checkpoint of a plain model resumed with another neck ends in
    ``parameter group that doesn't match the size of optimizer's group``, the
    checkpoint of another optimizer in ``KeyError: 'step'``, and bare weights in
    ``KeyError: 'meta'``. Where the numbers of tensors agree by chance, the
    optimizer's state is silently given to other parameters.
    """
    original = Runner.resume
    if getattr(original, 'explains_failures', False):
        return

    @wraps(original)
    def resume(self, filename, resume_optimizer=True, *args, **kwargs):
        check = _ResumeCheck(filename, resume_optimizer)
        self._hooks.append(check)
        try:
            original(self, filename, resume_optimizer, *args, **kwargs)
        finally:
            self._hooks.remove(check)

    resume.explains_failures = True
    Runner.resume = resume


class _ResumeCheck(Hook):
    """Check a checkpoint before any part of it is loaded."""

    def __init__(self, filename: str, resume_optimizer: bool) -> None:
        self.filename, self.resume_optimizer = filename, resume_optimizer

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = without_wrapper(runner.model)
        wrapper = runner.optim_wrapper if self.resume_optimizer else None
        reasons = list(resume_obstacles(checkpoint, model, wrapper))
        if reasons:
            raise ValueError(
                f'the training cannot resume from {self.filename}: it '
                f'{" and ".join(reasons)}. To start a training with its weights, '
                f'set load_from={str(self.filename)!r} and leave out resume '
                '(--cfg-options load_from=..., without --resume)')


def resume_obstacles(checkpoint: Mapping, model: nn.Module,
                     wrapper: object = None) -> Iterator[str]:
    """Compare the state of a training with the model that would resume it.

    Args:
        checkpoint: A checkpoint of mmengine's runner.
        model: The model to train further.
        wrapper: The optimizer wrapper; None: the optimizer is not compared.

    Yields:
        Reasons against resuming, as predicates of the word ``it``.
    """
    missing = [key for key in ('meta', 'message_hub') if key not in checkpoint]
    if missing:
        yield f'holds only weights, without {" and ".join(missing)}'
        return
    if wrapper is None:
        return
    saved = _optimizers(checkpoint.get('optimizer') or {}, wrapper)
    different = [reason for state, optimizer in saved
                 for reason in _optimizer_differences(state, optimizer)]
    new, gone = _parameters_that_differ(checkpoint.get('state_dict', {}), model)
    if new:
        yield f'was trained without {new}'
    if gone and (new or different):
        yield f'was trained with {gone}, which the model lacks'
    yield from different if not (new or gone) else [
        reason for reason in different if 'another optimizer' in reason]
    # Shapes were not compared if the optimizer has no state.
    if not (new or different):
        yield from _parameters_of_another_shape(
            checkpoint.get('state_dict', {}), model)


def _optimizers(saved: Mapping,
                wrapper: object) -> Iterator[tuple[Mapping, Optimizer]]:
    """Yield each saved optimizer state with the optimizer that would load it."""
    if isinstance(wrapper, OptimWrapperDict):
        for name, part in wrapper.items():
            yield from _optimizers(saved.get(name) or {}, part)
    elif isinstance(wrapper, OptimWrapper) and 'param_groups' in saved:
        yield saved, wrapper.optimizer


def _optimizer_differences(saved: Mapping,
                           optimizer: Optimizer) -> Iterator[str]:
    before, now = saved['param_groups'], optimizer.param_groups
    # A new version of torch only adds settings. Another optimizer also lacks some.
    old, new = ({name for group in groups for name in group
                 if not name.startswith(('initial_', 'param'))}
                for groups in (before, now))
    if old - new and new - old:
        yield ('was trained with another optimizer than this '
               f'{type(optimizer).__name__}, one with '
               f'{some(sorted(old - new))} instead of '
               f'{some(sorted(new - old))}')
    counts = [[len(group['params']) for group in groups]
              for groups in (before, now)]
    if counts[0] != counts[1]:
        yield (f'was trained with {sum(counts[0])} tensors in {len(before)} groups '
               f'of the optimizer, now there are {sum(counts[1])} in {len(now)}')
        return
    numbers = [number for group in before for number in group['params']]
    parameters = [p for group in now for p in group['params']]
    for number, parameter in zip(numbers, parameters):
        state = saved['state'].get(number) or {}
        for name in _PARAMETER_SHAPED:
            value = state.get(name)
            if value is not None and value.shape != parameter.shape:
                yield (f'has the state of other parameters: {name} of '
                       f'{[*value.shape]} for one of {[*parameter.shape]}')
                return


def _parameters_that_differ(state_dict: Mapping,
                            model: nn.Module) -> tuple[str, str]:
    """Describe parameters missing in the checkpoint, and keys missing in the model."""
    own = model.state_dict()
    given = {key.removeprefix('module.') for key in state_dict}
    # FPT accepts the keys of the plain pyramid for the wrapped one.
    aliases = {key: _without_pyramid(key) for key in own}
    new = [name for name, _ in model.named_parameters()
           if name in own and not given & {name, aliases[name]}]
    gone = given - set(own) - set(aliases.values())
    return tuple(f'{len(keys)} tensors ({some(summarised(keys, among), 3)})'
                 if keys else '' for keys, among in (
                     (new, own), ([k for k in state_dict if k in gone], given)))


def _parameters_of_another_shape(state_dict: Mapping,
                                 model: nn.Module) -> Iterator[str]:
    """Find parameters that mmengine would skip with a warning and train anew."""
    own = model.state_dict()
    given = {key.removeprefix('module.'): value
             for key, value in state_dict.items()}
    reshaped = [name for name, _ in model.named_parameters() if name in own
                and name in given and given[name].shape != own[name].shape]
    if reshaped:
        name = reshaped[0]
        yield (f'has {len(reshaped)} parameters of another shape, such as {name} '
               f'of {[*given[name].shape]} for {[*own[name].shape]}')


def _without_pyramid(key: str) -> str:
    return '.'.join(part for part in key.split('.') if part != 'pyramid')
