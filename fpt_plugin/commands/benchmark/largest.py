"""Search the largest image that fits into the memory of a device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...openmmlab.models import describe
from .measuring import resident_peak, run_pass
from .networks import NetworkCase

# Memory of a process on a CUDA device besides torch's tensors.
CONTEXT_GIB = 0.5
# Sides grow in steps of this many pixels; 25 steps are 800 x 1344.
STEP = 32
# Stop when the side is known to this relative precision.
PRECISION = 0.03
TRIALS = 6


def image_shape(steps: int) -> tuple[int, int]:
    """Return height and width of about 800:1344, in multiples of 32."""
    return STEP * steps, STEP * round(steps * 42 / 25)


@dataclass(frozen=True)
class Trial:
    """One pass at one size.

    Attributes:
        fits: Whether it ran within the limit.
        peak: Peak memory in bytes; 0 if it did not run.
        seconds: Duration.
        error: Why it did not run; None if it ran or memory was the reason.
    """

    fits: bool
    peak: int = 0
    seconds: float = 0.
    error: str | None = None


def search(attempt: Callable[[int], bool], guess: int, most: int,
           trials: int = TRIALS) -> tuple[int, int]:
    """Find the largest number of steps that fits, starting from a guess.

    Args:
        attempt: Returns whether a number of steps fits; must be monotonic.
        guess: The first number to try.
        most: The largest number to try.
        trials: Maximum number of attempts.

    Returns:
        The largest number that fitted (0: none), and the smallest number that
        did not (``most + 1``: none).
    """
    fitting, failing = 0, most + 1
    stride = PRECISION
    for _ in range(trials):
        if failing - fitting <= max(1, round(PRECISION * fitting)):
            break
        guess = min(max(guess, fitting + 1), failing - 1)
        if attempt(guess):
            fitting = guess
        else:
            failing = guess
        # Bisect once both bounds are known; before that, take growing strides.
        if fitting and failing <= most:
            guess = (fitting + failing) // 2
        else:
            guess = round(guess * (1 + stride if fitting else 1 - stride))
            stride = min(2 * stride, 0.9)
    return fitting, failing


def _line(sizes: Sequence[float], amounts: Sequence[float]) -> tuple[float, float]:
    """Fit offset and slope through two points, both clamped to at least 0."""
    (x0, x1), (y0, y1) = sizes, amounts
    slope = max(0., (y1 - y0) / (x1 - x0))
    return max(0., y1 - slope * x1), slope


class LargestImage:
    """Search for one network and dtype; the case's shape is ignored.

    Args:
        case: Device, network and dtype.
        probes: Two small numbers of steps, from which others are predicted.
        longest: Skip attempts with a longer predicted duration in seconds.
    """

    def __init__(self,
                 case: NetworkCase,
                 probes: tuple[int, int] = (19, 31),
                 longest: float = 8.) -> None:
        self.case = case
        self.probes = probes
        self.longest = longest
        self._state = case.prepare(case.names[0])
        self._probed: dict[str, list[Trial]] = {}
        # Warm up: allocate optimiser state, libraries and workspaces.
        for kind in ('step', 'forward'):
            self._try(probes[0], kind, self._limit(None))

    def find(self, kind: str, gib: float, deadline: float) -> dict[str, Any]:
        """Search the largest image of one pass on a device with ``gib`` GiB.

        Args:
            kind: ``'forward'`` or ``'step'``.
            gib: Memory of the simulated device.
            deadline: Start no attempt later, by ``time.monotonic()``.

        Returns:
            ``shape``, the largest that ran; ``peak_bytes`` and ``seconds`` of
            that pass; ``too_large``, the smallest shape that did not run; and
            ``limited_by``: ``'memory'``, ``'time'`` or an error.
        """
        limit = self._limit(gib)
        record = dict(
            network=self.case.names[0], dtype=self.case.dtype, kind=kind,
            gib=gib, limit_bytes=limit, shape=None, too_large=None)
        if time.monotonic() > deadline:
            return dict(record, limited_by='time')
        found: dict[int, Trial] = {}

        def attempt(steps: int) -> bool:
            if time.monotonic() > deadline:
                found[steps] = Trial(False, error='time')
            else:
                found[steps] = self._try(steps, kind, limit)
            return found[steps].fits

        guess, most = self._predict(kind, limit)
        fitting, failing = search(attempt, guess, most)
        if fitting:
            record.update(
                shape=image_shape(fitting), peak_bytes=found[fitting].peak,
                seconds=found[fitting].seconds)
        if failing > most:
            return dict(record, limited_by='time')
        error = found[failing].error
        if error != 'time':
            record['too_large'] = image_shape(failing)
        return dict(record, limited_by=error or 'memory')

    def _limit(self, gib: float | None) -> int:
        """Return the bytes for torch on a ``gib`` GiB device; None: this one."""
        if self.case.device == 'cuda':
            total = torch.cuda.get_device_properties(0).total_memory
            gib = min(total / 2**30, total if gib is None else gib)
        elif gib is None:
            return 1 << 60
        return int(max(gib - CONTEXT_GIB, 0.1 * gib) * 2**30)

    def _predict(self, kind: str, limit: int) -> tuple[int, int]:
        """Predict the largest number of steps; return it and the most to try."""
        if kind not in self._probed:
            # Twice: libraries initialise and choose kernels in the first pass.
            self._probed[kind] = [
                [self._try(steps, kind, self._limit(None)) for _ in range(2)][-1]
                for steps in self.probes
            ]
        trials = self._probed[kind]
        pixels = [steps**2 for steps in self.probes]
        offset, slope = _line(pixels, [t.peak for t in trials])
        guess = int((max(0., limit - offset) / max(slope, 1.))**0.5)
        # Attention is quadratic in the number of pixels, the rest is linear.
        linear, square = _line(
            pixels, [t.seconds / p for t, p in zip(trials, pixels)])
        most = max(1, guess)
        while most > 1 and linear * most**2 + square * most**4 > self.longest:
            most = int(0.95 * most)
        # Leave room above the guess, which may be too small.
        most = most if most < guess else round(1.5 * guess) + 2
        return max(1, min(guess, most)), most

    def _try(self, steps: int, kind: str, limit: int) -> Trial:
        """Run one pass at one size, in at most ``limit`` bytes."""
        state = self._state
        case = replace(self.case, shape=image_shape(steps))
        cuda = case.device == 'cuda'
        for leaf in case.leaves(state):
            leaf.grad = None
        state.image = None
        gc.collect()
        try:
            if cuda:
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.set_per_process_memory_fraction(
                    min(1., limit / total))
            before = 0 if cuda else resident_peak(reset=True)
            started = time.perf_counter()
            state.image = torch.zeros(
                case.batch, 3, *case.shape, device=case.device)
            run_pass(case, case.names[0], state, kind)
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            # A smaller device needs as much as the allocator reserved.
            peak = torch.cuda.max_memory_reserved() if cuda else \
                resident_peak() - before + case.held_bytes(state)
            return Trial(peak <= limit, peak, seconds)
        except torch.cuda.OutOfMemoryError:
            return Trial(False)
        except RuntimeError as error:
            # For example a library's own allocation, or 32-bit indices.
            return Trial(False, error=describe(error))
        finally:
            state.image = None
            if cuda:
                torch.cuda.set_per_process_memory_fraction(1.)
