"""Measure time, memory and error of several candidates for the same work.

benchmarks/README.md describes the method and the figures.
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
# Minimum number of turns when the time of a case is limited.
LEAST_TURNS = 3
# Standard deviation of a trained backbone's maps (0.2 to 0.7). With 1, the softmax
# has denormal numbers, which take twice the time on a CPU.
MAP_SCALE = 0.4


@dataclass(frozen=True)
class Case:
    """Work for which several candidates are compared.

    Subclasses define the work. They must be small and picklable, because each
    memory peak is measured in a new process.

    Attributes:
        name: Name in the table.
        device: ``'cpu'`` or ``'cuda'``.
        dtype: Name of the floating point type of the inputs.
        passes: The measured passes: ``'forward'``, ``'both'`` (with backward) or
            ``'step'`` (with backward and an optimiser step).
    """

    passes: ClassVar[tuple[str, ...]] = PASSES
    name: str
    device: str = 'cpu'
    dtype: str = 'float32'

    def candidates(self) -> tuple[str, ...]:
        """Return their names; ratios are relative to the first one."""
        raise NotImplementedError

    def prepare(self, candidate: str) -> Any:
        """Build the state before the time measurement."""
        raise NotImplementedError

    def leaves(self, state: Any) -> list[Tensor]:
        """Return the tensors with gradients, which are cleared between runs."""
        raise NotImplementedError

    def run(self, candidate: str, state: Any) -> Tensor | Sequence[Tensor]:
        """Run the forward pass; return the tensors for the backward pass."""
        raise NotImplementedError

    def step(self, state: Any) -> None:
        """Run an optimiser step, after the backward pass."""
        raise NotImplementedError

    def least_bytes(self, candidate: str) -> int:
        """Return a lower bound of the memory of the forward pass."""
        return 0

    def unavailable(self, candidate: str) -> str:
        """Return why the candidate cannot run here; empty if it can."""
        return ''

    def held_bytes(self, state: Any) -> int:
        """Return bytes allocated before a pass that count as its memory."""
        return 0

    def errors(self, states: dict[str, Any]) -> dict[str, float]:
        """Return the relative error of each candidate's output."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return the sizes, for the record."""
        return {}

    def _randn(self, *shape: int, seed: int, scale: float = 1.) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        x = scale * torch.randn(shape, generator=generator, device=self.device)
        return x.to(getattr(torch, self.dtype)).requires_grad_()


def relative_error(got: Tensor, want: Tensor) -> float:
    """Compute ||got - want|| / ||want||."""
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
        cases: The cases.
        repeats: Number of turns after a warm-up turn.
        limit: Skip candidates that would need more bytes.
        progress: Progress bar.
        memory: Measure peaks of memory.
        times: Time the passes and compare their results.
        case_seconds: Start no further turn of a case after this time, except
            the first three turns; None: no limit.
        deadline: Skip cases that would start later, by ``time.monotonic()``;
            None: no deadline.
        keep_going: Record the error of a candidate as ``failed`` and continue
            with the others.

    Returns:
        One record per case: ``case``, its sizes, and ``candidates`` by name. Each
        candidate has the ``median`` and ``spread`` (interquartile range) of the
        seconds of each pass, the extra peak memory of each pass in bytes, and the
        relative ``error``; or the reason under ``skipped`` or ``failed``.
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
                    skipped=f'would need more than {needed / 2**30:.0f} GiB')
            else:
                found[name] = {}
                running.append(name)
        # On CUDA, torch counts allocations. On a CPU, each peak is measured in a
        # new process.
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
    """Run interleaved turns of all candidates, then measure errors and peaks.

    Args:
        case: The case.
        found: The record of each candidate, filled here.
        turns: Number of turns; the first one is a warm-up.
        memory: Measure peaks.
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
        # Not in the handler, where the traceback keeps the pass's tensors alive.
        states.pop(name, None)
        found[name].clear()
        found[name].update(reason)
        _release(case.device)

    def prepare(name: str) -> None:
        states[name] = case.prepare(name)

    def take_turn(name: str, warm_up: bool) -> None:
        for kind in case.passes:
            taken = _clock(case, name, states[name], kind)
            if not warm_up:
                seconds[name][kind].append(taken)
            advance()

    def measure_peaks(name: str) -> None:
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
            attempt(name, partial(take_turn, name, turn == 0))
    for name in states if turns else ():
        found[name].update({
            kind: median_and_spread(taken)
            for kind, taken in seconds[name].items()
        })
    try:
        errors = case.errors(states) if turns else {}
    except RuntimeError as error:
        # The formula in float64 needs more memory than the candidates.
        memory_only = isinstance(error, torch.cuda.OutOfMemoryError)
        if not (memory_only or keep_going):
            raise
        errors = {}
    for name, error in errors.items():
        found[name]['error'] = error
    if memory:
        for name in list(states):
            attempt(name, partial(measure_peaks, name))


def _release(device: str) -> None:
    """Free unreferenced memory."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()


def median_and_spread(seconds: list[float]) -> dict[str, float]:
    """Compute median and interquartile range."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return dict(median=float(median), spread=float(high - low))


def _clock(case: Case, name: str, state: Any, kind: str) -> float:
    """Measure the seconds of one pass, after all earlier work."""
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
    """Run one pass of a candidate: ``'forward'``, ``'both'`` or ``'step'``."""
    with torch.set_grad_enabled(kind != 'forward'):
        out = case.run(name, state)
    if kind == 'forward':
        return
    outs = [out] if isinstance(out, Tensor) else list(out)
    torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])
    if kind == 'step':
        case.step(state)


def peak_in_fresh_process(case: Case, name: str, kind: str) -> int:
    """Measure the extra peak memory of a pass, in a new process."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_prepare_and_peak, case, name, kind,
                           torch.get_num_threads()).result()


def _prepare_and_peak(case: Case, name: str, kind: str, threads: int) -> int:
    torch.set_num_threads(threads)
    state = case.prepare(name)
    # Start thread pools and load libraries before the measurement.
    small = torch.ones(8, 8, requires_grad=True)
    (small @ small).softmax(-1).sum().backward()
    return _peak(case, name, state, kind)


def _peak(case: Case, name: str, state: Any, kind: str) -> int:
    """Measure the extra peak memory of a pass, in this process."""
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
    """Return this process's peak resident memory, and optionally reset it.

    Only Linux can reset the peak. Elsewhere it is the peak since the start of the
    process.
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
    """Describe the machine and the versions."""
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
    """Describe the CUDA device, its libraries, and its use of TF32."""
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
    """Return the version of the driver; None if nvidia-smi does not report it."""
    program = shutil.which('nvidia-smi')
    if program is None:
        return None
    result = subprocess.run(
        [program, '--query-gpu=driver_version', '--format=csv,noheader'],
        capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.strip().partition('\n')[0] or None


def _cpu() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
