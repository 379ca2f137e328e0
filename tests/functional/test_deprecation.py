"""Old names of arguments."""

import pytest
import torch
from helpers.functions import draw
from helpers.oracles import maps_of

from fpt_plugin import functional
from fpt_plugin.functional import reference
from fpt_plugin.layers import (
    GroundingTransformer,
    LocalGroundingTransformer,
    SelfTransformer,
)

PIXELS = torch.tensor([[0, 1]])
OPERANDS = ('query', 'key', 'value', 'mixture_weights')


def calls():
    """(function, its keywords, old name, new name)."""
    for module in (functional, reference):
        for name in ('mixture_attention', 'local_mixture_attention'):
            options = dict(window=3) if name.startswith('local') else {}
            yield (getattr(module, name), dict(zip(OPERANDS, draw(name)), **options),
                   'weights', 'mixture_weights')
    fine, coarse = maps_of((3, 4), (2, 2))
    yield (SelfTransformer(12).attention_at, dict(pixels=PIXELS, x=fine),
           'places', 'pixels')
    for layer in (GroundingTransformer, LocalGroundingTransformer):
        yield (layer(12).attention_at, dict(pixels=PIXELS, fine=fine, coarse=coarse),
               'places', 'pixels')


@pytest.mark.parametrize('function, arguments, old, new', calls())
def test_old_name(function, arguments, old, new):
    want = function(**arguments)
    others = {key: x for key, x in arguments.items() if key != new}
    with pytest.warns(DeprecationWarning, match=f'{old} of .* use {new}') as caught:
        assert torch.equal(function(**others, **{old: arguments[new]}), want)
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match=f'{new} once, got .* {old}'):
        function(**arguments, **{old: arguments[new]})
    with pytest.raises(TypeError, match=new):
        function(**others)


def test_old_name_beside_a_positional_argument():
    operands = draw('mixture_attention')
    functional.mixture_attention(*operands)
    with pytest.raises(TypeError, match='mixture_weights once'):
        functional.mixture_attention(*operands, weights=operands[3])
