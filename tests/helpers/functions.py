"""Every path of every function with its formula, and small operands."""

import functools

import torch

from fpt_plugin.functional import (
    content_lambda,
    local_mixture_attention,
    mixture_attention,
    position_lambda,
    reference,
)
from fpt_plugin.functional.lambdas import PATHS as ORDERS
from fpt_plugin.functional.paths import LOCAL_PATHS, MIXTURE_PATHS

# Shapes of the operands; the last operand of a mixture is its shares.
SHAPES = {
    'mixture_attention': ((2, 2, 5, 3), (2, 2, 4, 3), (2, 4, 2), (2, 2)),
    'local_mixture_attention': (
        (1, 2, 2, 3, 4), (1, 2, 2, 2, 3), (1, 2, 2, 3), (1, 2)),
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


# By name: a function and its formula, both of the operands.
FUNCTIONS = {
    f'{name} {variant}'.strip():
    (functools.partial(function, **options),
     functools.partial(getattr(reference, name), **formula_options))
    for name, variant, function, options, formula_options in _calls()
}


def draw(name, dtype=torch.float64, seed=0):
    """Draw the operands of a function in SHAPES or FUNCTIONS."""
    name = name.split()[0]
    generator = torch.Generator().manual_seed(seed)
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64)
                for shape in SHAPES[name]]
    if 'mixture' in name:
        operands[-1] = operands[-1].softmax(dim=1)
    return [x.to(dtype) for x in operands]
