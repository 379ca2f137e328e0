"""Every path of every function, its formula, small operands, and a recorder."""

import functools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpt_plugin.functional import (
    content_lambda,
    local_mixture_attention,
    mixture_attention,
    position_lambda,
    reference,
)
from fpt_plugin.functional.lambdas import PATHS as ORDERS
from fpt_plugin.functional.paths import LOCAL_PATHS, MIXTURE_PATHS

# Shapes of the operands. Those of a mixture end with its weights.
SHAPES = {
    'mixture_attention': ((2, 2, 5, 3), (2, 2, 4, 3), (2, 4, 2), (2, 2)),
    'local_mixture_attention':
    ((1, 2, 2, 3, 4), (1, 2, 2, 2, 3), (1, 2, 2, 3), (1, 2)),
    'content_lambda': ((2, 3, 2, 4), (2, 2, 2, 4)),
    'position_lambda': ((1, 2, 2, 3, 4), (1, 2, 2, 3, 4), (2, 2, 3, 5)),
}


def _calls():
    for similarity in ('dot', 'neg_euclid'):
        options = dict(similarity=similarity)
        for path in MIXTURE_PATHS:
            yield ('mixture_attention', f'{similarity} {path}',
                   mixture_attention, dict(options, path=path), options)
        for path in LOCAL_PATHS:
            for pad in ('zero', 'mask'):
                windowed = dict(options, window=3, pad=pad)
                yield ('local_mixture_attention', f'{similarity} {pad} {path}',
                       local_mixture_attention, dict(windowed, path=path),
                       windowed)
    yield 'content_lambda', '', content_lambda, {}, {}
    for path in ORDERS:
        yield 'position_lambda', path, position_lambda, dict(path=path), {}


# name -> (the function, its formula), of the operands
FUNCTIONS = {
    f'{name} {variant}'.strip():
    (functools.partial(function, **options),
     functools.partial(getattr(reference, name), **formula_options))
    for name, variant, function, options, formula_options in _calls()
}


def draw_shapes(shapes, dtype=torch.float64, seed=0):
    """Draw normal numbers; the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in shapes
    ]


def draw(name, dtype=torch.float64, seed=0):
    """Draw operands of a function, or of a name in FUNCTIONS."""
    name = name.split()[0]
    operands = draw_shapes(SHAPES[name], seed=seed)
    if 'mixture' in name:
        operands[-1] = operands[-1].softmax(dim=1)
    return [x.to(dtype) for x in operands]


def attention_operands(batch=2, parts=2, lq=9, lk=7, depth=3, channels=4, *,
                       seed=0, dtype=torch.float32):
    """Draw query, key, value and mixture weights."""
    *operands, weights = draw_shapes(
        ((batch, parts, lq, depth), (batch, parts, lk, depth),
         (batch, lk, channels), (batch, parts)), seed=seed)
    return [x.to(dtype) for x in (*operands, weights.softmax(dim=1))]


class Recorder(TorchDispatchMode):
    """Count softmaxes in place, and note the largest tensor an operator makes."""

    def __init__(self):
        super().__init__()
        self.softmaxes = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.softmaxes += func is torch.ops.aten.softmax.int_out
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and not x.is_meta:
                self.largest = max(self.largest, x.numel())
        return out
