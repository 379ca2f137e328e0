"""Functions, layers and networks under torch.compile with its default backend."""

import pytest
import torch
from helpers.base import Unpacked
from helpers.functions import FUNCTIONS, draw
from helpers.oracles import all_agree, maps_of, randomise
from helpers.oracles import run_with_gradients as run

from fpt_plugin import (
    FPT,
    GroundingTransformer,
    LambdaLayer,
    LambdaResNet,
    LocalGroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)
from fpt_plugin.functional.lambda_orders import ORDERS

# Sizes of the finest map. From the second on, torch compiles for any size.
SIZES = [(16, 20), (18, 26), (24, 16)]


def pyramid(levels):
    return lambda height, width: maps_of(
        *((-(-height // 2**i), -(-width // 2**i)) for i in range(levels)))


def neck(**cfg):
    return Unpacked(FPT(12, 12, pyramid=None, num_levels=2, fusion='concat', **cfg))


# By name: how to make a module, and its maps from a size.
LAYERS = {
    'ST': (lambda: SelfTransformer(12), pyramid(1)),
    'GT': (lambda: GroundingTransformer(12), pyramid(2)),
    'LGT': (lambda: LocalGroundingTransformer(12), pyramid(2)),
    'RT': (lambda: RenderingTransformer(12), lambda *size: pyramid(2)(*size)[::-1]),
    'lambda': (lambda: LambdaLayer(12, num_heads=2, query_depth=4, context_size=5),
               pyramid(1)),
}
NETWORKS = {
    'FPT': (neck, pyramid(2)),
    'windowed FPT': (lambda: neck(grounding_transformer=dict(
        type='LocalGroundingTransformer')), pyramid(2)),
    'LambdaResNet': (
        lambda: LambdaResNet(depth='26t', norm_eval=True),
        lambda height, width: maps_of((4 * height, 4 * width), channels=3)),
}


def outputs(module, maps):
    out = module(*maps)
    return [out] if isinstance(out, torch.Tensor) else list(out)


def trained(module, maps, call):
    """Return outputs and gradients of a module, or of its compiled form."""
    module.zero_grad()
    outs = outputs(call, maps)
    sum(out.float().square().mean() for out in outs).backward()
    grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return outs, grads


@pytest.fixture(autouse=True)
def reset():
    torch._dynamo.reset()


@pytest.mark.parametrize('name', [
    'mixture_attention dot chunked', 'mixture_attention neg_euclid chunked',
    'local_mixture_attention neg_euclid mask chunked',
    *(f'position_lambda {order}' for order in ORDERS)])
def test_functions(name):
    """Compile the operators with hand-written backward passes."""
    function, _ = FUNCTIONS[name]
    compiled = torch.compile(lambda *x: function(*x), fullgraph=True, dynamic=True)
    for seed in range(2):
        inputs = draw(name, seed=seed)
        all_agree(run(compiled, inputs), run(function, inputs), 1e-10)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_second_derivatives_of_a_graph_are_refused(name):
    function, _ = FUNCTIONS[name]
    compiled = torch.compile(lambda *x: function(*x), backend='aot_eager')
    inputs = [x.requires_grad_() for x in draw(name)]
    with pytest.raises(RuntimeError, match='double backward'):
        first, = torch.autograd.grad(
            compiled(*inputs).sum(), inputs[:1], create_graph=True)
        first.square().sum().backward()


@pytest.mark.parametrize('name', LAYERS)
def test_layers_infer(name):
    make, draw_maps = LAYERS[name]
    layer = randomise(make()).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in SIZES:
            maps = draw_maps(*size)
            all_agree(outputs(compiled, maps), outputs(layer, maps), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name, autocast', [
    ('FPT', False), ('windowed FPT', False), ('lambda', False), ('FPT', True),
    ('LambdaResNet', False)])
def test_training(name, autocast):
    """Three sizes; only one for a backbone, which compiles for minutes."""
    make, draw_maps = {**LAYERS, **NETWORKS}[name]
    module, sizes = make(), SIZES[:1]
    if name != 'LambdaResNet':
        module, sizes = randomise(module), SIZES
    compiled = torch.compile(module, fullgraph=True)
    for size in sizes:
        maps = draw_maps(*size)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            got, want = (trained(module, maps, call) for call in (compiled, module))
        for g, w in zip(got, want):
            all_agree(g, w, 0.1 if autocast else 1e-4)
