"""Random cases: how many are run, how they are drawn and compared.

Each test of tests/fuzz runs a few cases in the normal suite and many with ``-m slow``.
The examples are the same in every run (see conftest.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from helpers.oracles import gradient_floor

# Cases of each test: in the normal run, in the long one.
CASES = {
    'mixture_attention': (60, 450),
    'local_mixture_attention': (60, 350),
    'position_lambda': (60, 350),
    'content_lambda': (10, 100),
    'self_transformer': (20, 200),
    'grounding_transformer': (20, 200),
    'local_grounding_transformer': (20, 200),
    'rendering_transformer': (20, 200),
    'lambda_layer': (20, 200),
    'fpt': (16, 160),
    'lambda_resnet': (6, 60),
    'arguments of fpt': (40, 400),
    'arguments of lambda_resnet': (25, 250),
}

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Relative rounding error of a number in each dtype.
ROUNDING = {
    torch.float64: 2**-52,
    torch.float32: 2**-23,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11
}


def lengths(name: str):
    """Parametrise ``cases`` of a test: a normal and a long run."""
    normal, long = CASES[name]
    return pytest.mark.parametrize('cases', [
        pytest.param(normal, id='normal'),
        pytest.param(long, id='long', marks=pytest.mark.slow)
    ])


def run_cases(check: Callable, cases: int, **strategies) -> None:
    """Call ``check`` with random cases, and fail if fewer than ``cases`` ran.

    Args:
        check: Raises an error if a case is wrong.
        cases: Number of cases that must pass.
        strategies: The strategy for each argument of ``check``.
    """
    ran = 0

    # Derandomised runs would use the source of ``case`` as seed, which is the same for
    # all tests.
    @seed(sum(map(ord, inspect.getsource(check))))
    @settings(max_examples=cases, derandomize=False, database=None)
    @given(**strategies)
    def case(**drawn):
        nonlocal ran
        check(**drawn)
        ran += 1

    case()
    assert ran >= cases, f'{ran} of {cases} cases ran'


# ------------------------------------------------------------------- strategies


@st.composite
def sizes(draw, longest: int = 130, width: int = 3, usual: int = 9):
    """Draw height and width: both small, or one of up to ``longest``."""
    small = st.integers(1, usual)
    long, narrow = st.integers(1, longest), st.integers(1, width)
    return draw(
        st.one_of(
            st.tuples(small, small), st.tuples(long, narrow),
            st.tuples(narrow, long)))


seeds = st.integers(0, 2**16)
batches = st.sampled_from([1, 1, 1, 2, 2, 3, 0])


def _swapped(x):
    """Swap the last two dimensions in memory."""
    return x.transpose(-2, -1).contiguous().transpose(-2, -1)


def _channels_last(x):
    """Make dimension 1 the last in memory: channels_last of maps."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _strided(x):
    """Take every other number of a larger tensor."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


def _cut(x):
    """Take the middle of a larger tensor, not at the start of its memory."""
    wide = x.new_full([side + 3 for side in x.shape], torch.nan)
    for dim, side in enumerate(x.shape):
        wide = wide.narrow(dim, 1, side)
    return wide.copy_(x)


# The memory around the numbers is NaN, so that reading it is noticed.
LAYOUTS = {
    'contiguous': torch.Tensor.contiguous,
    'channels_last': _channels_last,
    'swapped': _swapped,
    'strided': _strided,
    'cut': _cut,
}
layouts = st.sampled_from(['contiguous', *LAYOUTS])


@st.composite
def traits(draw, count: int, mixed: bool = True):
    """Draw (dtype, layout, requires_grad) for each of ``count`` tensors.

    Most cases have one dtype; with ``mixed`` in some cases each tensor has its own.
    """
    dtype = st.sampled_from(DTYPES)
    if mixed and draw(st.integers(0, 3)) == 0:
        types = [draw(dtype) for _ in range(count)]
    else:
        types = [draw(dtype)] * count
    # All tensors need a gradient in most cases, some or none in others.
    learns = [True] * count
    if draw(st.booleans()):
        learns = [draw(st.booleans()) for _ in range(count)]
    return [(t, draw(layouts), learn) for t, learn in zip(types, learns)]


# ------------------------------------------------------------------- comparison


def draw_tensors(seed: int, *shapes: tuple[int, ...],
                 spread: float = 1.0) -> list[torch.Tensor]:
    """Draw normal numbers in float64; each tensor has its own mean."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [spread * (randn(*shape) + 0.5 * randn(1)) for shape in shapes]


def leaf(x: torch.Tensor, trait: tuple) -> torch.Tensor:
    """Convert a tensor to the drawn dtype, layout and requires_grad."""
    dtype, layout, learns = trait
    made = LAYOUTS[layout](x.detach().to(dtype))
    assert torch.equal(made.double(), x.to(dtype).double())
    return made.requires_grad_(learns)


def exact_twin(x: torch.Tensor) -> torch.Tensor:
    """Return the same numbers in float64; the result always requires a gradient."""
    return x.detach().double().contiguous().requires_grad_()


def assert_agree(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor],
                 leaves: dict[str, torch.Tensor], exact: dict[str, torch.Tensor],
                 tolerance: float, upstream: tuple[int, str] = (0, 'contiguous')
                 ) -> None:
    """Compare outputs, and the gradients of all leaves, with float64.

    Where terms cancel, a gradient is small and its error is that of the terms. So
    errors are relative to at least a tenth of the largest gradient.

    Args:
        got: Outputs computed from the leaves.
        want: The same outputs, computed from the exact leaves in float64.
        leaves: Operands and parameters by name.
        exact: Their twins in float64, which all require a gradient.
        tolerance: Relative error without the rounding of the result.
        upstream: Seed and layout of the gradients of the outputs.
    """
    seed, layout = upstream
    pairs, exact_pairs = [], []
    for i, (a, b) in enumerate(zip(got, want)):
        compare(f'output {i}', a, b, tolerance)
        grad = draw_tensors(seed + i, a.shape)[0].to(a.dtype)
        exact_pairs.append((b, grad.double()))
        if a.requires_grad:
            pairs.append((a, LAYOUTS[layout](grad)))
    assert len(got) == len(want)
    assert bool(pairs) == any(x.requires_grad for x in leaves.values())
    if not pairs:
        return
    torch.autograd.backward(*zip(*pairs))
    torch.autograd.backward(*zip(*exact_pairs))
    used = {name: x.grad for name, x in exact.items() if x.grad is not None}
    floor = gradient_floor(used.values())
    for name, x in leaves.items():
        assert (x.grad is None) == (
            not x.requires_grad or name not in used), name
        if x.grad is not None:
            assert x.grad.dtype == x.dtype
            compare(name, x.grad, used[name], tolerance, floor)


def compare(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float,
            floor: float = 0.0) -> None:
    """Assert that the difference, relative to the norm, is small enough."""
    assert got.shape == want.shape, name
    assert got.isfinite().all(), name
    difference = (got.detach().double() - want.detach()).norm().item()
    # Subnormal numbers of float16 are multiples of 2**-24.
    info = torch.finfo(got.dtype)
    steps = info.smallest_normal * info.eps * got.numel()**0.5
    allowed = (tolerance + ROUNDING[got.dtype]) * max(
        want.norm().item(), floor) + steps
    assert difference <= allowed, (
        f'{name} differs by {difference:.1e}, allowed are {allowed:.1e}')


def precision(dtypes) -> float:
    """Return the relative error of sums in float32, or in float64 if any is."""
    return 1e-11 if torch.float64 in dtypes else 1e-5
