"""Behaviour that all layers have in common."""

import copy
import doctest
import sys
import warnings

import mmdet.registry
import mmengine
import mmseg.registry
import pytest
import torch
from helpers.oracles import maps_of, randomise, relative_error
from mmengine.model import BaseModule

from fpt_plugin import layers

CHANNELS = 12
FINE, COARSE = (7, 11), (4, 6)
# The maps of each layer's forward, by the names of its arguments.
FPT_LAYERS = dict(
    SelfTransformer=dict(x=FINE),
    GroundingTransformer=dict(fine=FINE, coarse=COARSE),
    LocalGroundingTransformer=dict(fine=FINE, coarse=COARSE),
    RenderingTransformer=dict(coarse=COARSE, fine=FINE))
FORWARD = dict(FPT_LAYERS, LambdaLayer=dict(x=FINE))
# A batch norm would make the images of a batch depend on each other.
OPTIONS = dict(LambdaLayer=dict(
    query_depth=4, context_size=5, norm_cfg=dict(type='GN', num_groups=1)))
MIXTURES = ('SelfTransformer', 'GroundingTransformer',
            'LocalGroundingTransformer')
POOLED = ('SelfTransformer', 'GroundingTransformer')
all_layers = pytest.mark.parametrize('name', FORWARD)
fpt_layers = pytest.mark.parametrize('name', FPT_LAYERS)
mixture_layers = pytest.mark.parametrize('name', MIXTURES)
pooled_layers = pytest.mark.parametrize('name', POOLED)


def build(name, in_channels=CHANNELS, **options):
    return getattr(layers, name)(in_channels, **{**OPTIONS.get(name, {}), **options})


def maps_for(name, **options):
    return maps_of(*FORWARD[name].values(), **options)


def out_size(name):
    """The output has the size of the first map."""
    return next(iter(FORWARD[name].values()))


def grads_of(layer, maps):
    layer(*maps).square().sum().backward()
    return {n: p.grad for n, p in layer.named_parameters()}


def test_every_public_layer_is_here():
    assert FORWARD.keys() == set(layers.__all__)


@all_layers
@pytest.mark.parametrize('training', [True, False])
def test_one_image(name, training):
    """Images are independent, in training and in evaluation."""
    layer, maps = build(name), maps_for(name)
    whole = layer(*maps)
    alone = layer.train(training)(*(m[:1] for m in maps))
    assert alone.shape == (1, CHANNELS, *out_size(name))
    assert relative_error(alone, whole[:1]) <= 1e-6


@all_layers
def test_no_image(name):
    out = build(name)(*(m[:0] for m in maps_for(name)))
    assert out.shape == (0, CHANNELS, *out_size(name))


@all_layers
def test_channels_last(name):
    layer, maps = randomise(build(name)), maps_for(name)
    strided = [m.to(memory_format=torch.channels_last) for m in maps]
    assert relative_error(layer(*strided), layer(*maps)) <= 1e-6


@all_layers
def test_every_parameter_gets_a_gradient_at_its_start(name):
    for parameter, grad in grads_of(build(name), maps_for(name)).items():
        assert grad is not None and grad.isfinite().all(), parameter
        assert grad.any(), parameter


@all_layers
def test_frozen_layers_pass_gradients_on(name):
    layer, maps = build(name).requires_grad_(False), maps_for(name)
    for m in maps:
        m.requires_grad_()
    assert not any(g is not None for g in grads_of(layer, maps).values())
    assert all(m.grad.any() for m in maps)


@all_layers
def test_state_dict(name, tmp_path):
    layer, maps = randomise(build(name)), maps_for(name)
    torch.save(layer.state_dict(), tmp_path / 'layer.pth')
    loaded = build(name)
    assert not torch.equal(loaded(*maps), layer(*maps))
    loaded.load_state_dict(
        torch.load(tmp_path / 'layer.pth', weights_only=True))
    assert torch.equal(loaded(*maps), layer(*maps))
    assert torch.equal(copy.deepcopy(layer)(*maps), layer(*maps))


@all_layers
@pytest.mark.parametrize('registry', [
    mmengine.registry.MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS
], ids=lambda registry: registry.scope)
@pytest.mark.parametrize('prefix', ['', 'mmengine.', 'fpt_plugin.'])
def test_registered(name, registry, prefix):
    """Under its name, with the scope of the root, and with the package's."""
    layer = registry.build(dict(type=prefix + name, in_channels=CHANNELS))
    assert type(layer) is getattr(layers, name)


class Parent(BaseModule):
    """A module with an init_cfg of its own, such as a neck."""

    def __init__(self, layer, init_cfg):
        super().__init__(init_cfg)
        self.layer = layer
        self.other = torch.nn.Conv2d(2, 2, 1)


@fpt_layers
def test_own_initialisation_wins_over_a_parents(name):
    layer = randomise(build(name))
    parent = Parent(layer, dict(type='Constant', val=1.0, layer='Conv2d'))
    parent.init_weights()
    assert parent.other.weight.eq(1).all()
    assert_at_its_start(layer)


def assert_at_its_start(layer):
    """Check for Xavier's uniform distribution in convolutions, zeros elsewhere."""
    for name, parameter in layer.named_parameters():
        if name.endswith('.weight'):
            out_channels, fan_in = parameter.flatten(1).shape
            fan_out = out_channels * parameter[0, 0].numel()
            bound = (6 / (fan_in + fan_out))**0.5
            assert 0.8 * bound < parameter.abs().max() <= bound, name
            assert parameter.std() > 0.4 * bound, name
        else:
            assert not parameter.any(), name


@fpt_layers
def test_constructor_and_init_weights_initialise_alike(name):
    """Inferencers and a Runner that only tests never call init_weights."""
    assert_at_its_start(build(name))
    layer = randomise(build(name))
    layer.init_weights()
    assert_at_its_start(layer)
    # A second call changes nothing; mmengine only warns.
    before = copy.deepcopy(layer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        layer.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@all_layers
def test_pretrained_init_cfg(name, tmp_path):
    checkpoint = str(tmp_path / 'layer.pth')
    trained = randomise(build(name))
    torch.save(dict(state_dict=trained.state_dict()), checkpoint)
    layer = build(name, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    layer.init_weights()
    maps = maps_for(name)
    assert torch.equal(layer(*maps), trained(*maps))


@mixture_layers
def test_a_single_part_has_no_mixture(name):
    layer = build(name, num_mixtures=1)
    assert layer.mixture_weight is None
    assert 'mixture_weight' not in layer.state_dict()
    layer.init_weights()
    assert all(g.any() for g in grads_of(layer, maps_for(name)).values())


@all_layers
@pytest.mark.parametrize('capture', [
    torch.jit.trace, lambda *args: torch.export.export(*args).module()],
    ids=['trace', 'export'])
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_captured_layer_gives_the_same(name, capture):
    """Deployment tools and operation counters capture graphs."""
    layer, maps = randomise(build(name)), maps_for(name)
    captured = capture(layer, tuple(maps))
    assert relative_error(captured(*maps), layer(*maps)) <= 1e-6


@all_layers
def test_example_of_the_docstring(name):
    module = sys.modules[getattr(layers, name).__module__]
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0


@pooled_layers
def test_repr_shows_the_arguments(name):
    text = repr(build(name, key_stride=3, scale=0.25))
    assert 'key_stride=3' in text and 'scale=0.25' in text


BAD_NUMBERS = [(0, ValueError), (-2, ValueError), (2.0, TypeError),
               ('2', TypeError), (True, TypeError)]


@pytest.mark.parametrize('name, argument', [
    *((name, 'in_channels') for name in FORWARD),
    *((name, 'embed_channels') for name in FPT_LAYERS),
    *((name, 'num_mixtures') for name in MIXTURES),
    *((name, 'key_stride') for name in POOLED)
])
@pytest.mark.parametrize('number, error', [*BAD_NUMBERS, ((2, ), TypeError)])
def test_bad_counts(name, argument, number, error):
    with pytest.raises(error, match=f'^{argument} must .*got') as caught:
        build(name, **{argument: number})
    assert repr(number) in str(caught.value)


@pooled_layers
@pytest.mark.parametrize('number, error', BAD_NUMBERS)
def test_bad_key_stride_of_a_call(name, number, error):
    with pytest.raises(error, match='^key_stride must .*got') as caught:
        build(name)(*maps_for(name), key_stride=number)
    assert repr(number) in str(caught.value)


@mixture_layers
@pytest.mark.parametrize('scale, error', [
    (0, ValueError), (-1.0, ValueError), (float('inf'), ValueError),
    (float('nan'), ValueError), ('1', TypeError), (True, TypeError)])
def test_bad_scale(name, scale, error):
    with pytest.raises(error, match='^scale must .*got') as caught:
        build(name, scale=scale)
    assert repr(scale) in str(caught.value)


@mixture_layers
def test_parts_must_divide_the_channels(name):
    with pytest.raises(ValueError, match='multiple of num_mixtures') as error:
        build(name, embed_channels=10, num_mixtures=3)
    assert 'embed_channels=10' in str(error.value)
    assert 'num_mixtures=3' in str(error.value)


def maps_of_layers(least):
    """Parametrise each map of each layer that takes ``least`` maps or more."""
    return pytest.mark.parametrize(
        'name, argument', [(name, argument) for name, maps in FORWARD.items()
                           for argument in maps if len(maps) >= least])


def forward_with(name, argument, change):
    """Call the layer with keywords and one of its maps changed."""
    maps = dict(zip(FORWARD[name], maps_for(name)))
    maps[argument] = change(maps[argument])
    return build(name)(**maps)


@maps_of_layers(1)
@pytest.mark.parametrize('change, error, words', [
    (lambda x: x.numpy(), TypeError, 'be a tensor .*, got ndarray'),
    (lambda x: [x], TypeError, 'be a tensor .*, got list'),
    (lambda x: None, TypeError, 'be a tensor .*, got NoneType'),
    (lambda x: x.int(), TypeError, 'be a floating .*, got torch.int32'),
    (lambda x: x[0], ValueError, r'be \(B, C, H, W\).*, got \(12, '),
    (lambda x: x[None], ValueError, r'be \(B, C, H, W\).*, got \(1, 2, 12, '),
    (lambda x: x[:, :, :0], ValueError, r'.* at least 1, got \(2, 12, 0, '),
    (lambda x: x[..., :0], ValueError, r'.* at least 1, got \(2, 12, \d+, 0'),
    (lambda x: x[:, :5], ValueError, r'.*in_channels=12 .* 5 in \(2, 5, '),
    (lambda x: x.double(), TypeError, 'have the dtype of the parameters'),
])
def test_bad_maps(name, argument, change, error, words):
    with pytest.raises(error, match=f'^{argument} must {words}'):
        forward_with(name, argument, change)


@maps_of_layers(2)
def test_bad_batch(name, argument):
    # One image could be broadcast.
    with pytest.raises(ValueError, match='fine and coarse .* one batch') as e:
        forward_with(name, argument, lambda x: x[:1])
    assert '(1, 12, ' in str(e.value) and '(2, 12, ' in str(e.value)
