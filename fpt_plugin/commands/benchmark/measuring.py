"""Side-by-side measurement of contestants at one piece of work.

How it is done, and what the figures mean: benchmarks/README.md.
"""

from __future__ import annotations

import gc
import importlib.metadata
import multiprocessing
import os
import platform
import resource
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

PASSES = ('forward', 'both')


@dataclass(frozen=True)
class Case:
    """A piece of work that several contestants can do.

    Subclasses say how. They are small and can be pickled, because each peak
    of memory is measured in a process of its own.

    Attributes:
        name: As the table shows it.
        device: ``'cpu'`` or ``'cuda'``.
        dtype: Name of the floating point type of the inputs.
        passes: What is measured; what only infers has no backward pass.
    """

    passes: ClassVar[tuple[str, ...]] = PASSES
    name: str
    device: str = 'cpu'
    dtype: str = 'float32'

    def contestants(self) -> tuple[str, ...]:
        """Names; times are shown relative to the first one's."""
        raise NotImplementedError

    def prepare(self, contestant: str) -> Any:
        """Everything that is there before the clock starts."""
        raise NotImplementedError

    def leaves(self, state: Any) -> list[Tensor]:
        """The tensors that get gradients, cleared between two runs."""
        raise NotImplementedError

    def run(self, contestant: str, state: Any) -> Tensor | Sequence[Tensor]:
        """The work itself; returns what the backward pass starts from."""
        raise NotImplementedError

    def least_bytes(self, contestant: str) -> int:
        """A lower bound of what the contestant's forward pass holds."""
        return 0

    def errors(self, states: dict[str, Any]) -> dict[str, float]:
        """Relative error of each contestant's output."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Sizes, for the record."""
        return {}

    def _randn(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=generator)
        return x.to(self.device, getattr(torch, self.dtype)).requires_grad_()


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||."""
    return ((got - want).norm() / want.norm()).item()


def measure(cases: Sequence[Case],
            repeats: int,
            limit: int,
            progress: Progress,
            memory: bool = True,
            times: bool = True) -> list[dict]:
    """Time all contestants of each case in turns, and weigh them.

    Args:
        cases: What to measure.
        repeats: Turns, after one that does not count.
        limit: A contestant that would hold more bytes is left out by name.
        progress: Shows how far it is.
        memory: Whether peaks of memory are measured.
        times: Whether passes are timed, and their results compared.

    Returns:
        A record a case: ``case``, its sizes, and ``contestants`` by name, each
        with the ``median`` and ``spread`` (interquartile range) of the seconds
        of a forward pass and of forward and backward, the extra peak memory of
        both in bytes, and the relative ``error``; or ``skipped`` with why.
    """
    records = []
    for case in cases:
        record = dict(case=case.name, **case.facts(), contestants={})
        found = record['contestants']
        running = []
        for name in case.contestants():
            needed = case.least_bytes(name)
            if needed > limit:
                found[name] = dict(
                    skipped=f'would hold more than {needed / 2**30:.0f} GiB')
            else:
                running.append(name)
        turns = repeats + 1 if times else 0
        task = progress.add_task(
            case.name, total=len(case.passes) * len(running) * (turns + memory))
        if times:
            found.update(
                _times(case, running, repeats, partial(progress.advance, task)))
        for name in running if memory else ():
            found.setdefault(name, {})
            for kind in case.passes:
                found[name][f'{kind}_bytes'] = peak_in_fresh_process(
                    case, name, kind == 'both')
                progress.advance(task)
        records.append(record)
    return records


def _times(case: Case, names: list[str], repeats: int,
           advance: Callable[[], None]) -> dict:
    """Medians and spreads of interleaved repeats, and errors."""
    states = {name: case.prepare(name) for name in names}
    seconds = {name: {kind: [] for kind in case.passes} for name in names}
    for turn in range(repeats + 1):
        for name in names:
            for kind in case.passes:
                taken = _clock(case, name, states[name], kind == 'both')
                if turn:  # the first one warms caches and allocators up
                    seconds[name][kind].append(taken)
                advance()
    errors = case.errors(states)
    return {
        name: {
            **{
                kind: median_and_spread(seconds[name][kind])
                for kind in case.passes
            },
            **({'error': errors[name]} if name in errors else {})
        }
        for name in names
    }


def median_and_spread(seconds: list[float]) -> dict[str, float]:
    """Median and interquartile range."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return dict(median=float(median), spread=float(high - low))


def _clock(case: Case, name: str, state: Any, backward: bool) -> float:
    """Seconds of one pass; what ran before has ended."""
    for leaf in case.leaves(state):
        leaf.grad = None
    if case.device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        _pass(case, name, state, backward)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    started = time.perf_counter()
    _pass(case, name, state, backward)
    return time.perf_counter() - started


def _pass(case: Case, name: str, state: Any, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        out = case.run(name, state)
    if backward:
        outs = [out] if isinstance(out, Tensor) else list(out)
        torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])


def peak_in_fresh_process(case: Case, name: str, backward: bool) -> int:
    """Bytes by which a pass exceeds what is there before it."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, case, name, backward,
                           torch.get_num_threads()).result()


def _peak(case: Case, name: str, backward: bool, threads: int) -> int:
    """Bytes by which a pass exceeds what was there before it."""
    torch.set_num_threads(threads)
    state = case.prepare(name)
    # Thread pools and libraries that the first operation of a kind loads.
    small = torch.ones(8, 8, requires_grad=True)
    (small @ small).softmax(-1).sum().backward()
    gc.collect()
    if case.device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _pass(case, name, state, backward)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    before = _resident_peak(reset=True)
    _pass(case, name, state, backward)
    return _resident_peak() - before


def _resident_peak(reset: bool = False) -> int:
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


def surroundings(device: str) -> dict[str, Any]:
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
        fpt_plugin=importlib.metadata.version('fpt_plugin'),
        date=time.strftime('%Y-%m-%d'))


def _cpu() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
