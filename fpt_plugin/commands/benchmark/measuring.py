"""Side-by-side measurement of candidates at one piece of work.

How it is done, and what the figures mean: benchmarks/README.md.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ...openmmlab.models import describe
from ...version import __version__

PASSES = ('forward', 'both')
# Turns that a case gets at least, where its time is limited.
LEAST_TURNS = 3
# Standard deviation of a trained backbone's maps (0.2 to 0.7). With 1, exponentials
# of the scores' differences are denormal numbers, which take a CPU twice the time.
MAP_SCALE = 0.4


@dataclass(frozen=True)
class Case:
    """A piece of work that several candidates can do.

    Subclasses say how. They are small and can be pickled, because each peak
    of memory is measured in a process of its own.

    Attributes:
        name: As the table shows it.
        device: ``'cpu'`` or ``'cuda'``.
        dtype: Name of the floating point type of the inputs.
        passes: What is measured: ``'forward'``, ``'both'`` (with backward) or
            ``'step'`` (with backward and an optimiser step).
    """

    passes: ClassVar[tuple[str, ...]] = PASSES
    name: str
    device: str = 'cpu'
    dtype: str = 'float32'

    def candidates(self) -> tuple[str, ...]:
        """Names; times are shown relative to the first one's."""
        raise NotImplementedError

    def prepare(self, candidate: str) -> Any:
        """Everything that is there before the clock starts."""
        raise NotImplementedError

    def leaves(self, state: Any) -> list[Tensor]:
        """The tensors that get gradients, cleared between two runs."""
        raise NotImplementedError

    def run(self, candidate: str, state: Any) -> Tensor | Sequence[Tensor]:
        """The work itself; returns what the backward pass starts from."""
        raise NotImplementedError

    def step(self, state: Any) -> None:
        """An optimiser step, after the backward pass."""
        raise NotImplementedError

    def least_bytes(self, candidate: str) -> int:
        """A lower bound of what the candidate's forward pass holds."""
        return 0

    def unavailable(self, candidate: str) -> str:
        """Why the candidate cannot run here; empty: it can."""
        return ''

    def held_bytes(self, state: Any) -> int:
        """What is there before a pass and counts as its memory all the same."""
        return 0

    def errors(self, states: dict[str, Any]) -> dict[str, float]:
        """Relative error of each candidate's output."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Sizes, for the record."""
        return {}

    def _randn(self, *shape: int, seed: int, scale: float = 1.) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        x = scale * torch.randn(shape, generator=generator, device=self.device)
        return x.to(getattr(torch, self.dtype)).requires_grad_()


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||."""
    return ((got - want).norm() / want.norm()).item()


def measure(cases: Sequence[Case],
            repeats: int,
            limit: int,
            progress: Progress,
            memory: bool = True,
            times: bool = True,
            *,
            case_seconds: float | None = None,
            deadline: float | None = None,
            keep_going: bool = False) -> list[dict]:
    """Time all candidates of each case in turns, and measure their memory.

    Args:
        cases: What to measure.
        repeats: Turns, after one that does not count.
        limit: A candidate that would hold more bytes is left out by name.
        progress: Shows how far it is.
        memory: Whether peaks of memory are measured.
        times: Whether passes are timed, and their results compared.
        case_seconds: Start no further turn of a case after that long, except
            the first three; None: no limit.
        deadline: Leave out the cases that would start later, by
            ``time.monotonic()``; None: none.
        keep_going: Record the error of a candidate as ``failed`` and go on
            with the others, so that one long run loses nothing else.

    Returns:
        A record a case: ``case``, its sizes, and ``candidates`` by name, each
        with the ``median`` and ``spread`` (interquartile range) of the seconds
        of each pass, the extra peak memory of each pass in bytes, and the
        relative ``error``; or ``skipped`` or ``failed`` with why.
    """
    records = []
    for case in cases:
        record = dict(case=case.name, **case.facts(), candidates={})
        found = record['candidates']
        running = []
        late = deadline is not None and time.monotonic() > deadline
        for name in case.candidates():
            needed = case.least_bytes(name)
            reason = 'no time left' if late else case.unavailable(name)
            if reason:
                found[name] = dict(skipped=reason)
            elif needed > limit:
                found[name] = dict(
                    skipped=f'would hold more than {needed / 2**30:.0f} GiB')
            else:
                found[name] = {}
                running.append(name)
        # On CUDA torch counts what is allocated; a CPU's peaks need a process.
        in_process = memory and case.device == 'cuda'
        turns = repeats + 1 if times else 0
        task = progress.add_task(
            case.name, total=len(case.passes) * len(running) * (turns + memory))
        advance = partial(progress.advance, task)
        if times or in_process:
            _measure_in_process(case, {name: found[name] for name in running},
                                turns, in_process, advance, case_seconds,
                                keep_going)
        for name in running if memory and not in_process else ():
            for kind in case.passes:
                found[name][f'{kind}_bytes'] = peak_in_fresh_process(
                    case, name, kind)
                advance()
        records.append(record)
    return records


def _measure_in_process(case: Case, found: dict[str, dict], turns: int,
                        memory: bool, advance: Callable[[], None],
                        case_seconds: float | None, keep_going: bool) -> None:
    """Interleaved repeats of all candidates, then their errors and peaks.

    Args:
        case: What to measure.
        found: The record of each candidate, filled here.
        turns: How many; the first one does not count.
        memory: Whether peaks are measured.
        advance: Called after each pass.
        case_seconds: See :func:`measure`.
        keep_going: See :func:`measure`.
    """
    states: dict[str, Any] = {}
    seconds = {name: {kind: [] for kind in case.passes} for name in found}

    def attempt(name: str, work: Callable[[], None]) -> None:
        if 'skipped' in found[name] or 'failed' in found[name]:
            return
        try:
            work()
            return
        except torch.cuda.OutOfMemoryError:
            reason = dict(skipped='out of memory')
        except Exception as error:
            if not keep_going:
                raise
            reason = dict(failed=describe(error))
        # After the handler: the traceback holds the tensors of the pass.
        states.pop(name, None)
        found[name].clear()
        found[name].update(reason)
        _release(case.device)

    def prepare(name: str) -> None:
        states[name] = case.prepare(name)

    def take_turn(name: str, counts: bool) -> None:
        for kind in case.passes:
            taken = _clock(case, name, states[name], kind)
            if counts:
                seconds[name][kind].append(taken)
            advance()

    def weigh(name: str) -> None:
        for kind in case.passes:
            found[name][f'{kind}_bytes'] = _peak(case, name, states[name], kind)
            advance()

    for name in found:
        attempt(name, partial(prepare, name))
    started = time.monotonic()
    for turn in range(turns):
        if turn > LEAST_TURNS and case_seconds is not None \
                and time.monotonic() - started > case_seconds:
            break
        for name in found:
            attempt(name, partial(take_turn, name, turn > 0))
    for name in states if turns else ():
        found[name].update({
            kind: median_and_spread(taken)
            for kind, taken in seconds[name].items()
        })
    try:
        errors = case.errors(states) if turns else {}
    except RuntimeError as error:
        # The formula in float64 holds more than the candidates.
        memory_only = isinstance(error, torch.cuda.OutOfMemoryError)
        if not (memory_only or keep_going):
            raise
        errors = {}
    for name, error in errors.items():
        found[name]['error'] = error
    if memory:
        for name in list(states):
            attempt(name, partial(weigh, name))


def _release(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()


def median_and_spread(seconds: list[float]) -> dict[str, float]:
    """Median and interquartile range."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return dict(median=float(median), spread=float(high - low))


def _clock(case: Case, name: str, state: Any, kind: str) -> float:
    """Seconds of one pass; what ran before has ended."""
    for leaf in case.leaves(state):
        leaf.grad = None
    if case.device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run_pass(case, name, state, kind)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    started = time.perf_counter()
    run_pass(case, name, state, kind)
    return time.perf_counter() - started


def run_pass(case: Case, name: str, state: Any, kind: str) -> None:
    """One pass of a candidate: ``'forward'``, ``'both'`` or ``'step'``."""
    with torch.set_grad_enabled(kind != 'forward'):
        out = case.run(name, state)
    if kind == 'forward':
        return
    outs = [out] if isinstance(out, Tensor) else list(out)
    torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])
    if kind == 'step':
        case.step(state)


def peak_in_fresh_process(case: Case, name: str, kind: str) -> int:
    """Bytes by which a pass exceeds what is there before it."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_prepare_and_peak, case, name, kind,
                           torch.get_num_threads()).result()


def _prepare_and_peak(case: Case, name: str, kind: str, threads: int) -> int:
    torch.set_num_threads(threads)
    state = case.prepare(name)
    # Thread pools and libraries that the first operation of a kind loads.
    small = torch.ones(8, 8, requires_grad=True)
    (small @ small).softmax(-1).sum().backward()
    return _peak(case, name, state, kind)


def _peak(case: Case, name: str, state: Any, kind: str) -> int:
    """Bytes by which a pass in this process exceeds what was there before."""
    for leaf in case.leaves(state):
        leaf.grad = None
    gc.collect()
    held = case.held_bytes(state)
    if case.device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run_pass(case, name, state, kind)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before + held
    before = resident_peak(reset=True)
    run_pass(case, name, state, kind)
    return resident_peak() - before + held


def resident_peak(reset: bool = False) -> int:
    """Peak of the resident memory of this process, from now on if reset.

    Where the system cannot reset it (other than Linux), the peak of the
    process' whole life so far stands for what is there.
    """
    try:
        if reset:
            Path('/proc/self/clear_refs').write_text('5')
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if platform.system() == 'Darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: str) -> dict[str, Any]:
    """The machine and the versions that figures belong to."""
    return dict(
        device=torch.cuda.get_device_name() if device == 'cuda' else _cpu(),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        memory_gib=round(
            os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30),
        system=f'{platform.system()} {platform.machine()}',
        python=platform.python_version(),
        torch=torch.__version__,
        fpt_plugin=__version__,
        date=time.strftime('%Y-%m-%d'),
        **(_cuda() if device == 'cuda' else {}))


def _cuda() -> dict[str, Any]:
    """The CUDA device, its libraries, and what they round products to."""
    properties = torch.cuda.get_device_properties(0)
    return dict(
        device_memory_gib=round(properties.total_memory / 2**30, 1),
        capability=f'{properties.major}.{properties.minor}',
        multiprocessors=properties.multi_processor_count,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        driver=_driver(),
        tf32=dict(
            matmul=torch.backends.cuda.matmul.allow_tf32,
            cudnn=torch.backends.cudnn.allow_tf32))


def _driver() -> str | None:
    """Version of the device's driver; None where nvidia-smi does not tell."""
    program = shutil.which('nvidia-smi')
    if program is None:
        return None
    told = subprocess.run(
        [program, '--query-gpu=driver_version', '--format=csv,noheader'],
        capture_output=True, text=True, timeout=30, check=False)
    return told.stdout.strip().partition('\n')[0] or None


def _cpu() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
