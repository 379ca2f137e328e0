"""Random cases for the fuzz tests: numbers, strategies and comparison.

Each test of tests/fuzz runs twice: with few cases, and, marked slow, with many. The
examples are the same in every run (see conftest.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from helpers.oracles import gradient_floor

# Cases of each test: in the fast run, in the slow run.
CASES = {
    'mixture_attention': (40, 450),
    'local_mixture_attention': (35, 350),
    'position_lambda': (35, 350),
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
ROUNDING = {torch.float64: 2**-52, torch.float32: 2**-23, torch.bfloat16: 2**-8,
            torch.float16: 2**-11}


def lengths(name: str):
    """Parametrise ``cases`` of a test: a fast and a slow run."""
    normal, long = CASES[name]
    return pytest.mark.parametrize('cases', [
        pytest.param(normal, id='normal'),
        pytest.param(long, id='long', marks=pytest.mark.slow)])


def run_cases(check: Callable, cases: int, **strategies) -> None:
    """Call ``check`` with random cases, and fail if fewer than ``cases`` pass.

    Args:
        check: Raises if a case is wrong.
        cases: Number of cases.
        strategies: The strategy of each argument of ``check``.
    """
    ran = 0

    # Each test has its own seed: derandomize would hash the code of this inner
    # function, which is the same for all tests.
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
    """Draw height and width: both small, or one of them up to ``longest``."""
    small = st.integers(1, usual)
    long, narrow = st.integers(1, longest), st.integers(1, width)
    return draw(st.one_of(
        st.tuples(small, small), st.tuples(long, narrow), st.tuples(narrow, long)))


seeds = st.integers(0, 2**16)
batches = st.sampled_from([1, 1, 1, 2, 2, 3, 0])


def _swapped(x):
    """Swap the last two dimensions in memory."""
    return x.transpose(-2, -1).contiguous().transpose(-2, -1)


def _channels_last(x):
    """Make dimension 1 the last one in memory, as in channels_last."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _strided(x):
    """Take every second number of a larger tensor."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


def _cut(x):
    """Take the middle of a larger tensor, with an offset in its memory."""
    wide = x.new_full([side + 3 for side in x.shape], torch.nan)
    for dim, side in enumerate(x.shape):
        wide = wide.narrow(dim, 1, side)
    return wide.copy_(x)


# The memory around the values is NaN, so that a wrong read shows.
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
    """Draw (dtype, layout, requires_grad) for ``count`` tensors.

    Most share one dtype; with ``mixed`` some have different ones, as under autocast.
    """
    dtype = st.sampled_from(DTYPES)
    if mixed and draw(st.integers(0, 3)) == 0:
        types = [draw(dtype) for _ in range(count)]
    else:
        types = [draw(dtype)] * count
    # In half of the cases all tensors have gradients, otherwise some or none.
    learns = [True] * count
    if draw(st.booleans()):
        learns = [draw(st.booleans()) for _ in range(count)]
    return [(t, draw(layouts), learn) for t, learn in zip(types, learns)]


# ------------------------------------------------------------------- comparison


def draw_tensors(seed: int, *shapes: tuple[int, ...],
                 spread: float = 1.0) -> list[torch.Tensor]:
    """Draw tensors in float64, each with its own mean."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [spread * (randn(*shape) + 0.5 * randn(1)) for shape in shapes]


def leaf(x: torch.Tensor, trait: tuple) -> torch.Tensor:
    """Convert a tensor to the drawn traits."""
    dtype, layout, learns = trait
    made = LAYOUTS[layout](x.detach().to(dtype))
    assert torch.equal(made.double(), x.to(dtype).double())
    return made.requires_grad_(learns)


def assert_agrees(function: Callable, formula: Callable,
                  leaves: dict[str, torch.Tensor], *, upstream: tuple[int, str],
                  out_dtype: torch.dtype, tolerance: float) -> None:
    """Compare one output and the gradients of its leaves with float64.

    Args:
        function: Called with the leaves.
        formula: Called with their values in float64, contiguous.
        leaves: The inputs by name.
        upstream: Seed and layout of the output's gradient.
        out_dtype: Expected dtype of the output.
        tolerance: Relative error without the rounding to the dtypes.
    """
    exact = [exact_twin(x) for x in leaves.values()]
    got, want = function(*leaves.values()), formula(*exact)
    assert got.dtype == out_dtype
    compare('output', got, want, tolerance)
    learns = any(x.requires_grad for x in leaves.values())
    assert got.requires_grad == learns
    if not learns:
        return
    number, layout = upstream
    grad = draw_tensors(number, got.shape)[0].to(out_dtype)
    got.backward(LAYOUTS[layout](grad))
    want.backward(grad.double())
    floor = least_norm(exact)
    for (name, x), reference in zip(leaves.items(), exact):
        assert (x.grad is None) == (not x.requires_grad), name
        if x.grad is not None:
            assert x.grad.dtype == x.dtype
            compare(name, x.grad, reference.grad, tolerance, floor)


def exact_twin(x: torch.Tensor) -> torch.Tensor:
    """Return the same numbers in float64, always with a gradient."""
    return x.detach().double().contiguous().requires_grad_()


def least_norm(exact) -> float:
    """Return the least denominator for errors of gradients."""
    return gradient_floor(x.grad for x in exact)


def compare(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float,
            floor: float = 0.0) -> None:
    """Assert that the difference, relative to the norm, is small enough."""
    assert got.shape == want.shape and got.isfinite().all(), name
    difference = (got.detach().double() - want.detach()).norm().item()
    # Very small numbers of float16 are rounded to multiples of 2**-24.
    info = torch.finfo(got.dtype)
    steps = info.smallest_normal * info.eps * got.numel()**0.5
    norm = max(want.norm().item(), floor)
    allowed = (tolerance + ROUNDING[got.dtype]) * norm + steps
    assert difference <= allowed, (
        f'{name} differs by {difference:.1e}, allowed are {allowed:.1e}')


def precision(dtypes) -> float:
    """Return the tolerance of sums in float32, or in float64 for its inputs."""
    return 1e-11 if torch.float64 in dtypes else 1e-5
