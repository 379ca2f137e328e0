import pytest
from mmengine.registry import FUNCTIONS
from torch import nn

from fpt_plugin import FPT, LambdaResNet
from fpt_plugin.engine import wrap_layers


class Block(nn.Linear):
    pass


def wrapped(module, **kwargs):
    return wrap_layers(module, recurse=False, nonwrapped_numel=0, **kwargs)


def test_branches_and_blocks_are_units():
    assert FUNCTIONS.get('wrap_layers') is wrap_layers
    neck = FPT([8, 16], 16, num_outs=2, pyramid=dict(type='BottomUpPyramid'))
    units = [m for m in neck.modules() if wrapped(m)]
    assert units == [
        *neck.self_transformers.values(), *neck.grounding_transformers.values(),
        *neck.rendering_transformers.values()
    ]
    backbone = LambdaResNet('26t', num_stages=2, out_indices=(0, 1))
    assert sum(map(wrapped, backbone.modules())) == 4


def test_names_include_subclasses():
    assert wrapped(Block(1, 1), layers=['Linear'])
    assert wrapped(Block(1, 1), layers=('Block', ))
    assert not wrapped(Block(1, 1), layers=['Lin'])
    assert wrap_layers(nn.ReLU(), recurse=True, nonwrapped_numel=0)
    for layers in ('SelfTransformer', [FPT]):
        with pytest.raises(TypeError, match='list of class names'):
            wrapped(Block(1, 1), layers=layers)
