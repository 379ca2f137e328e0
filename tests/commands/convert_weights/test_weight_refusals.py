"""Checkpoints of other networks and damaged ones are refused, and named."""

from __future__ import annotations

import pytest
import torch
from helpers.folders import names
from helpers.foreign_checkpoints import (
    RESNET_50,
    command,
    meta_state,
    resnet_state,
    task,
)
from helpers.reference_lambda_nets import DLi14Net
from mmengine.registry import MODELS

from fpt_plugin.commands.convert_weights.command import (
    converted,
    main,
    parser,
    shapes_of,
)
from fpt_plugin.commands.convert_weights.key_maps import Conversion
from fpt_plugin.io.checkpoints import Weights

HALONET = {
    'stages.0.0.conv1_1x1.conv.weight': torch.rand(64, 64, 1, 1),
    'stages.0.0.self_attn.q.weight': torch.rand(64, 64, 1, 1)
}
MOBILENET = dict.fromkeys(('features.0.0.weight', 'features.2.conv.0.0.weight',
                           'features.2.conv.2.weight'), torch.rand(1))


@pytest.mark.parametrize('words, state, got', [
    (command('26t'), lambda: meta_state('26rpt'),
     "timm's lambda_resnet26rpt_256; use timm-lambda --arch 26rpt"),
    (command('26rpt'), lambda: meta_state('26t'),
     "timm's lambda_resnet26t; use timm-lambda --arch 26t"),
    (command('26t'), lambda: meta_state('50ts'),
     "timm's lambda_resnet50ts; use timm-lambda --arch 50ts"),
    (command('50ts'), lambda: meta_state('d-li14-50'),
     "d-li14's LambdaResNet-50; use d-li14"),
    (command('50ts'), lambda: HALONET,
     "another of timm's nets (1 blocks, no lambda layers)"),
    (['d-li14'], lambda: resnet_state(RESNET_50),
     'ResNet-50 (3-4-6-3 blocks); use torchvision-resnet --depth 50'),
    (['d-li14'], lambda: DLi14Net((2, 2, 2, 2)).state_dict(),
     "another of d-li14's LambdaResNets (2-2-2-2 blocks, 8 of them lambda)"),
    (['torchvision-resnet'], lambda: resnet_state((3, 4, 23, 3)),
     'ResNet-101 (3-4-23-3 blocks); use torchvision-resnet --depth 101'),
    (['torchvision-resnet', '--depth', '101'], lambda: resnet_state(RESNET_50),
     'ResNet-50 (3-4-6-3 blocks); use torchvision-resnet --depth 50'),
    (['torchvision-resnet'], lambda: resnet_state((2, 2, 2, 2)),
     'a ResNet of 2-2-2-2 blocks'),
    (['torchvision-resnet'], lambda: resnet_state(RESNET_50, basic=True),
     'a ResNet of basic blocks (3-4-6-3)'),
    (['torchvision-resnet'],
     lambda: resnet_state(RESNET_50, groups=32, width=128),
     'a ResNeXt (3-4-6-3 blocks)'),
    (['torchvision-resnet'], lambda: resnet_state(RESNET_50, width=128),
     'a ResNet of another width (128, 3-4-6-3 blocks)'),
    (['torchvision-resnet'], lambda: meta_state('d-li14-50'),
     "d-li14's LambdaResNet-50; use d-li14"),
    (['torchvision-mobilenetv2'], lambda: resnet_state(RESNET_50),
     'ResNet-50 (3-4-6-3 blocks); use torchvision-resnet --depth 50'),
    (['torchvision-resnet'], lambda: MOBILENET,
     "torchvision's MobileNetV2; use torchvision-mobilenetv2"),
    (command('26t'), lambda: dict(a=torch.rand(1), b=torch.rand(1)),
     'an unknown net with keys such as a, b'),
    (command('26t'), lambda: MODELS.build(dict(
        type='LambdaResNet', depth='26t')).state_dict(),
     "fpt_plugin's LambdaResNet (2-2-2-2 blocks), converted already"),
])
def test_another_network_is_refused(words, state, got):
    conversion = task(*words)
    with pytest.raises(ValueError) as caught:
        converted(conversion, Weights(state()), {})
    assert str(caught.value) == \
        f'{conversion.command} needs {conversion.net}, got {got}'
    assert conversion.command.startswith(words[0])


def changed(name, key, value=None):
    """Return a network's shapes with another tensor at a key, or without it."""
    state = resnet_state(RESNET_50) if name == 'resnet' else meta_state(name)
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize('name, key, value, words', [
    ('26t', 'stages.0.1.conv2_kxk.conv.weight', torch.rand(64, 64, 5, 5),
     ['stages.0.1.conv2_kxk.conv.weight', '(64, 64, 5, 5)', '(64, 64, 3, 3)',
      'layer1.1.conv2.weight']),
    ('26t', 'stages.3.0.self_attn.conv_lambda.weight',
     torch.rand(16, 1, 7, 7, 1), ['(16, 1, 7, 7, 1)', '(16, 1, 9, 9)']),
    ('26t', 'stages.3.0.self_attn.conv_lambda.weight',
     torch.rand(16, 1, 9, 9), None),
    ('26rpt', 'stages.3.1.self_attn.pos_emb', torch.rand(31, 31, 16),
     ['(31, 31, 16)', '(16, 1, 15, 15)', 'layer4.1.conv2.embedding']),
    ('26rpt', 'stages.3.1.self_attn.pos_emb', torch.rand(15, 15),
     ['(15, 15)', '(16, 1, 15, 15)']),
    ('d-li14-50', 'layer1.0.conv2.lambda_conv.weight',
     torch.rand(16, 1, 1, 7, 7), ['(16, 1, 1, 7, 7)', '(16, 1, 23, 23)']),
    ('26t', 'stages.0.0.conv3_1x1.bn.bias', None,
     ['1 of its tensors', 'layer1.0.bn3.bias']),
    ('26t', 'stages.2.1.self_attn.conv_lambda.bias', None,
     ['layer3.1.conv2.content_bias']),
    ('d-li14-50', 'layer4.2.conv2.norm_q.weight', None,
     ['1 of its tensors', 'layer4.2.conv2.norm_q.weight']),
    ('26t', 'stages.0.0.se.fc1.weight', torch.rand(1),
     ["the key 'stages.0.0.se.fc1.weight'"]),
    ('26t', 'stem.conv4.conv.weight', torch.rand(1),
     ["the key 'stem.conv4.conv.weight'"]),
    ('26t', 'final_conv.conv.weight', torch.rand(1),
     ["the key 'final_conv.conv.weight'"]),
    ('26rpt', 'stages.2.1.self_attn.conv_lambda.bias', torch.rand(16),
     ['no key stages.2.1.self_attn.conv_lambda.bias', 'content_bias']),
    ('d-li14-50', 'layer1.0.conv2.pos.weight', torch.rand(1),
     ["the key 'layer1.0.conv2.pos.weight'"]),
    ('d-li14-50', 'layer5.weight', torch.rand(1), ["the key 'layer5.weight'"]),
    ('resnet', 'layer2.1.conv1.weight', torch.rand(64, 512, 1, 1),
     ['layer2.1.conv1.weight', '(64, 512, 1, 1)', '(128, 512, 1, 1)']),
    ('resnet', 'layer2.1.bn1.weight', None, ['layer2.1.bn1.weight']),
])
def test_a_wrong_tensor_is_named(name, key, value, words):
    asked = task(*(['torchvision-resnet'] if name == 'resnet' else command(name)))
    shapes = shapes_of(asked.backbone)
    state = changed(name, key, value)
    if words is None:  # the last axis of a lambda layer may be missing
        assert converted(asked, Weights(state), shapes).state_dict.keys() == (
            shapes.keys())
        return
    with pytest.raises(ValueError) as caught:
        converted(asked, Weights(state), shapes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_two_tensors_for_one_key():
    conversion = Conversion()
    conversion.take('a', 'c', torch.rand(1))
    with pytest.raises(ValueError, match='a and b would both be c'):
        conversion.take('b', 'c', torch.rand(1))


def save_shapes(state, path):
    """Save tensors of these shapes that take no space in the file."""
    torch.save({key: torch.zeros(()).expand(value.shape)
                for key, value in state.items()}, path)


@pytest.mark.parametrize('words, state', [
    (command('26t'), meta_state('26rpt')),
    (command('26t'), {**meta_state('26t'), 'other.weight': torch.rand(1)}),
    (['torchvision-resnet'], resnet_state((3, 4, 23, 3))),
])
def test_a_refused_checkpoint_writes_nothing(tmp_path, words, state):
    path = tmp_path / 'in.pth'
    save_shapes(state, path)
    before = path.read_bytes()
    for out in (tmp_path / 'out.pth', path):
        with pytest.raises(ValueError):
            main(parser().parse_args([*words, str(path), str(out)]))
        assert names(tmp_path) == ['in.pth'] and path.read_bytes() == before


@pytest.mark.parametrize('words', [
    [], ['timm-lambda', 'a', 'b'], ['timm-lambda', 'a', 'b', '--arch', '50t'],
    ['torchvision-resnet', 'a', 'b', '--depth', '18'], ['d-li14', 'a'],
    ['torchvision-mobilenetv2', 'a', 'b', '--host', 'mmcv']
])
def test_bad_arguments(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(words)
    assert caught.value.code == 2
    assert 'usage' in capsys.readouterr().err
