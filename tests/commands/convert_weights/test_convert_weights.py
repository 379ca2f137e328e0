"""Converted weights compute the features of the original networks.

The other projects are not needed: helpers/reference_lambda_nets.py has their
networks.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from helpers.foreign_checkpoints import (
    DEEP_STEM,
    RESNET_50,
    build,
    command,
    resnet_state,
    task,
)
from helpers.oracles import relative_error
from helpers.reference_lambda_nets import TimmLambda, like_trained
from mmengine.registry import MODELS

from fpt_plugin.commands.convert_weights import command as module
from fpt_plugin.commands.convert_weights.command import (
    converted,
    main,
    parser,
    shapes_of,
)
from fpt_plugin.commands.convert_weights.key_maps import (
    CLASSIFIER,
    LAMBDA,
    NO_PART,
    STEM,
)
from fpt_plugin.commands.convert_weights.nets import RESNET_DEPTHS
from fpt_plugin.io.checkpoints import Weights

NETS = ['26t', '26rpt', '50ts', 'd-li14-50']
# Blocks of the fourth stage (0-based 2) that are lambda layers, by depth.
C4_LAMBDAS = {
    50: [3],
    101: [6, 12, 18],
    152: range(5, 31, 5),
    200: range(5, 31, 5),
    270: range(8, 49, 8),
    350: range(10, 61, 10),
    420: range(10, 81, 10)
}


@pytest.fixture
def folder():
    """Return a folder that is removed, because checkpoints are large."""
    with TemporaryDirectory() as path:
        yield Path(path)


def run(folder, content, *words, source='in.pth', out='out.pth'):
    """Save a checkpoint and convert it."""
    torch.save(content, folder / source)
    return main(parser().parse_args(
        [*words, str(folder / source), str(folder / out)]))


@cache
def trained(name):
    """Return a reference network with random weights, which tests do not change."""
    size = (192, 192) if name.startswith('d') else (256, 256)
    return like_trained(build(name), size)


# ------------------------------------------------------------------ lambda nets


@pytest.fixture(scope='module')
def backbones():
    """Return a function that gives our backbone with converted weights."""
    with TemporaryDirectory() as path:
        made = {}

        def get(name):
            if name not in made:
                report = run(Path(path), trained(name).state_dict(),
                             *command(name), out=f'{name}.pth')
                backbone = MODELS.build(dict(type='LambdaResNet', depth=name))
                state = torch.load(report.out, weights_only=True)
                assert list(state) == ['state_dict']
                # strict: nothing missing, nothing left over, all shapes equal
                backbone.load_state_dict(state['state_dict'], strict=True)
                made[name] = backbone.eval(), report
            return made[name]

        yield get
    trained.cache_clear()  # 200 MB


@pytest.mark.parametrize('name, size', [
    *[(name, (256, 256)) for name in ('26t', '26rpt', '50ts')],
    *[(name, (97, 131)) for name in NETS],
    ('26rpt', (160, 320)),
    ('26rpt', (288, 257)),
    ('d-li14-50', (64, 64)),
])
def test_features_equal_those_of_the_original(backbones, name, size):
    x = torch.randn(2, 3, *size)
    backbone, _ = backbones(name)
    net = trained(name)
    with torch.no_grad():
        want, got = net(x), backbone(x)
    # A network for 256x256 has a position for every pair of pixels at this size.
    tables = [m.used_the_table for m in net.modules() if isinstance(m, TimmLambda)]
    if name == '26rpt':
        assert tables == [size == (256, 256)] * 3
    assert len(got) == len(want) == 4
    for ours, theirs in zip(got, want):
        assert .1 < theirs.std() < 10  # neither zeros nor overflowing
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize('name', NETS)
def test_only_the_classifier_is_left_out(backbones, name):
    _, report = backbones(name)
    assert report.new == ()
    assert set(report.skipped.values()) == {CLASSIFIER}
    assert set(report.skipped) == {
        key for key in trained(name).state_dict() if 'fc.' in key
    }
    assert set(report.mapped.values()) == set(report.shapes)


def test_dtypes_and_counters(folder):
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in trained('26t').state_dict().items()
    }
    report = run(folder, state, *command('26t'))
    written = torch.load(report.out, weights_only=True)['state_dict']
    assert written['stem.0.weight'].dtype == torch.float16
    assert written['layer3.1.conv2.norm_q.num_batches_tracked'] == 7
    assert all(value.is_contiguous() for value in written.values())
    # Old checkpoints have no counters.
    counter = 'num_batches_tracked'
    report = run(folder, {key: value for key, value in state.items()
                          if not key.endswith(counter)}, *command('26t'))
    assert report.new and all(key.endswith(counter) for key in report.new)


# ---------------------------------------------------------------------- ResNets


@pytest.mark.parametrize('depth', list(RESNET_DEPTHS.values()))
@pytest.mark.parametrize('average', [False, True])
def test_resnets_of_every_depth(depth, average):
    blocks = next(
        tuple(map(int, text.split('-')))
        for text, number in RESNET_DEPTHS.items() if number == depth)
    asked = task('torchvision-resnet', '--depth', str(depth))
    shapes = shapes_of(asked.backbone)
    state = resnet_state(
        blocks, average=average, stem=DEEP_STEM if average else ((64, 7), ))
    result = converted(asked, Weights(state), shapes)
    lambdas = {f'layer3.{j}.conv2' for j in C4_LAMBDAS[depth]}
    lambdas |= {f'layer4.{j}.conv2' for j in range(blocks[3])}
    expected = {'fc.weight': CLASSIFIER, 'fc.bias': CLASSIFIER}
    expected.update((f'{at}.weight', LAMBDA) for at in lambdas)
    if not average:
        expected.update((key, STEM) for key in state
                        if key.startswith(('conv1.', 'bn1.')))
    assert result.skipped == expected
    new = shapes.keys() - result.state_dict.keys()
    stem = ('stem.9.', 'stem.10.') if average else ('stem.', )
    assert new == {
        key for key in shapes
        if key.startswith(stem) or '.'.join(key.split('.')[:3]) in lambdas
    }


@pytest.mark.parametrize('kind', ['ResNet', 'ResNetV1d'])
def test_resnets_of_mmdet(folder, kind):
    theirs = MODELS.build(dict(type=f'mmdet.{kind}', depth=50))
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * .1 + .01)
    state = theirs.state_dict()
    report = run(folder, dict(meta=dict(), state_dict=state), 'torchvision-resnet')
    written = torch.load(report.out, weights_only=True)['state_dict']
    assert written.keys() == set(report.mapped.values())
    for old, key in report.mapped.items():
        assert torch.equal(written[key], state[old]), key
    ours = MODELS.build(dict(type='LambdaResNet', depth=50)).eval()
    assert not ours.load_state_dict(written, strict=False).unexpected_keys
    # Stages without lambda layers compute the same. The shortcut of the second one
    # is strided in the plain ResNet, and ours is pooled.
    theirs.eval()
    x = torch.randn(1, 64, 17, 22)
    with torch.no_grad():
        want, got = theirs.layer1(x), ours.layer1(x)
        assert relative_error(got, want) < 1e-5 and want.std() > 0
        error = relative_error(ours.layer2(want), theirs.layer2(want))
        assert (error < 1e-5) == (kind == 'ResNetV1d')
        if kind == 'ResNetV1d':
            x = torch.rand(1, 3, 33, 40)
            assert relative_error(ours.stem[:9](x), theirs.stem(x)) < 1e-5


def test_a_deep_stem_with_plain_shortcuts():
    """As in mmdet's ResNetV1c."""
    state = resnet_state(RESNET_50, stem=DEEP_STEM)
    state['layer1.0.conv2_offset.weight'] = torch.rand(18, 64, 3, 3)
    asked = task('torchvision-resnet')
    result = converted(asked, Weights(state), shapes_of(asked.backbone))
    assert result.sources['stem.6.weight'] == 'stem.6.weight'
    assert result.sources['layer2.0.downsample.1.weight'] == (
        'layer2.0.downsample.0.weight')
    assert result.sources['layer2.0.downsample.2.running_var'] == (
        'layer2.0.downsample.1.running_var')
    assert result.skipped['layer1.0.conv2_offset.weight'] == NO_PART


def test_libraries_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='mmseg is not installed'):
        shapes_of(dict(type='mmseg.MobileNetV2'))


# ----------------------------------------------------------------------- report


def test_the_report_lists_every_key(folder, capsys):
    state = resnet_state(RESNET_50, device='cpu')
    content = {f'backbone.{key}': value for key, value in state.items()
               if not key.startswith('fc.')}
    content['neck.convs.0.weight'] = torch.rand(1)
    report = run(folder, dict(state_dict=content, model=content),
                 'torchvision-resnet')
    printed = capsys.readouterr().out
    assert len(report.mapped) + len(report.skipped) == len(content)
    for words in (
            f'{folder}/in.pth, its state_dict (not its model): ResNet-50',
            f'mapped    {len(report.mapped)} of {len(content)} keys',
            'skipped   6, the stem differs: conv1.*, bn1.*',
            'skipped   4, replaced by a lambda layer: layer3.3.conv2.*, '
            'layer4.0.conv2.*, layer4.1.conv2.*, layer4.2.conv2.*',
            'skipped   1, not of the backbone: neck.*',
            ': stem.*, layer3.3.conv2.*, layer4.0.conv2.*, layer4.1.conv2.*, '
            'layer4.2.conv2.*\n',
            f'written   {folder}/out.pth, for'):
        assert words in printed, words
    # The printed lines are Python, and build the backbone with these weights.
    scope = {}
    exec(printed[printed.index('backbone='):], scope)
    backbone = MODELS.build(scope['backbone'])
    backbone.init_weights()
    assert torch.equal(backbone.layer4[2].conv3.weight,
                       state['layer4.2.conv3.weight'])
