from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.base import BaseBackboneTester
from mmengine.config import Config
from mmengine.registry import MODELS

from fpt_plugin import LambdaLayer, LambdaResNet

# Small windows for speed; the tests do not depend on their size.
SMALL = dict(context_size=5)


class TestHybrid(BaseBackboneTester):
    cfg = dict(type='LambdaResNet', depth=50, lambda_layer=SMALL)


class TestAllBlocksWithSqueezeAndExcitation(BaseBackboneTester):
    cfg = dict(type='LambdaResNet', depth='26t', se=True,
               lambda_blocks=[(0, 1), (1, 0), (2, 0), (3, 1)],
               lambda_layer=SMALL)


class TestPresetWithSiLU(BaseBackboneTester):
    cfg = dict(type='LambdaResNet', depth='50ts')


class TestSevenBySevenStem(BaseBackboneTester):
    cfg = dict(type='LambdaResNet', depth='d-li14-50', lambda_layer=SMALL)


def on_meta(*args, **kwargs):
    with torch.device('meta'):
        return LambdaResNet(*args, **kwargs)


def lambda_blocks(backbone):
    """Return (stage, block) of the lambda layers."""
    return {(int(name[5]) - 1, int(name.split('.')[1]))
            for name, m in backbone.named_modules()
            if isinstance(m, LambdaLayer)}


@pytest.mark.parametrize('depth, plain, with_se', [
    (50, 16.3, 19.5), (101, 34.2, 45.3), (152, 48.2, 65.1), (200, 52.7, 71.7),
    (270, 75.4, 104.0), (350, 98.6, 138.1), (420, 116.5, 163.9)
])
def test_millions_of_parameters(depth, plain, with_se):
    for se, expected in ((False, plain), (True, with_se)):
        count = sum(p.numel() for p in on_meta(depth, se=se).parameters())
        assert round(count / 1e6, 1) == expected


@pytest.mark.parametrize('depth, blocks, c4', [
    (50, (3, 4, 6, 3), [3]),
    (101, (3, 4, 23, 3), [6, 12, 18]),
    (152, (3, 8, 36, 3), [5, 10, 15, 20, 25, 30]),
    (200, (3, 24, 36, 3), [5, 10, 15, 20, 25, 30]),
    (270, (4, 29, 53, 4), [8, 16, 24, 32, 40, 48]),
    (350, (4, 36, 72, 4), [10, 20, 30, 40, 50, 60]),
    (420, (4, 44, 87, 4), [10, 20, 30, 40, 50, 60, 70, 80]),
])
def test_hybrids(depth, blocks, c4):
    backbone = on_meta(depth)
    stages = [getattr(backbone, f'layer{i}') for i in range(1, 5)]
    assert tuple(map(len, stages)) == blocks
    assert lambda_blocks(backbone) == {(2, i) for i in c4} | {
        (3, i) for i in range(blocks[3])
    }
    assert all(m.context_size == (23, 23) for m in backbone.modules()
               if isinstance(m, LambdaLayer))


@pytest.mark.parametrize('depth, expected, contexts, bias', [
    ('26t', {(2, 1), (3, 0), (3, 1)}, {9}, True),
    ('26rpt', {(2, 1), (3, 0), (3, 1)}, {31, 15}, False),
    ('50ts', {(1, 3), (2, 1), (2, 3), (2, 5), (3, 1)}, {9}, True),
    ('d-li14-50', {(s, b) for s, n in enumerate((3, 4, 6, 3))
                   for b in range(n)}, {23}, True),
])
def test_presets(depth, expected, contexts, bias):
    backbone = on_meta(depth)
    assert lambda_blocks(backbone) == expected
    layers = [m for m in backbone.modules() if isinstance(m, LambdaLayer)]
    assert {m.context_size[0] for m in layers} == contexts
    assert all((m.content_bias is not None) == bias for m in layers)
    act = torch.nn.SiLU if depth == '50ts' else torch.nn.ReLU
    assert isinstance(backbone.layer1[0].act, act)


def test_keys_are_those_of_the_libraries_resnet():
    """Except the keys of the stem and the lambda layers."""
    import mmdet.models  # noqa: F401
    plain = set(MODELS.build(dict(type='mmdet.ResNetV1d', depth=50)).state_dict())
    ours = set(on_meta(50).state_dict())
    lambdas = {k for k in ours if 'conv2.' in k and k.count('.') > 3
               or k.endswith('conv2.embedding')}
    strided = {k for k in ours if k.startswith(('stem.9.', 'stem.10.'))}
    assert ours - plain == lambdas | strided
    assert plain - ours == {
        f'layer{stage + 1}.{block}.conv2.weight'
        for stage, block in lambda_blocks(on_meta(50))
    }


def test_a_block_starts_as_its_shortcut():
    backbone = LambdaResNet(50, norm_eval=False).train()
    for _ in range(2):
        block = backbone.layer4[1]
        x = torch.rand(2, 2048, 5, 6)
        assert torch.equal(block(x), x)
        backbone.init_weights()
    other = LambdaResNet(50, zero_init_residual=False)
    assert other.layer4[1].bn3.weight.eq(1).all()


def test_init_weights_keeps_pretrained_weights(tmp_path):
    source = LambdaResNet(50)
    with torch.no_grad():
        for p in source.parameters():
            p.uniform_(-1, 1)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    backbone = LambdaResNet(50, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    backbone.init_weights()
    for (name, a), b in zip(backbone.state_dict().items(),
                            source.state_dict().values()):
        assert torch.equal(a, b), name


def test_output_stride_of_segmentors():
    """Dilation changes convolutions; a lambda block has stride 1 instead."""
    backbone = LambdaResNet(
        50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        contract_dilation=True, lambda_layer=SMALL).eval()
    maps = backbone(torch.rand(1, 3, 65, 97))
    assert [tuple(x.shape[2:]) for x in maps] == [(17, 25)] + 3 * [(9, 13)]
    conv = [b.conv2 for b in backbone.layer3]
    assert [c.dilation for c in conv if not isinstance(c, LambdaLayer)
            ] == [(1, 1)] + 4 * [(2, 2)]
    first = backbone.layer4[0]
    assert isinstance(first.conv2, LambdaLayer) and first.average is None


def test_strided_lambda_blocks_average():
    block = on_meta(50).layer4[0].average
    assert (block.kernel_size, block.stride, block.padding,
            block.count_include_pad) == (3, 2, 1, False)
    assert on_meta('d-li14-50').layer4[0].average.count_include_pad
    assert on_meta('26t').layer4[0].average.kernel_size == 2
    assert on_meta(50).layer3[0].average is None  # a convolution has a stride


def test_squeeze_and_excitation_is_for_convolution_blocks():
    backbone = on_meta(50, se=True)
    assert backbone.layer2[0].se is not None
    assert backbone.layer4[0].se is None
    assert backbone.layer2[0].se.conv1.weight.shape == (128, 512, 1, 1)


@pytest.mark.parametrize('norm_cfg, types', [
    (dict(type='GN', num_groups=8), torch.nn.GroupNorm),
    (dict(type='SyncBN', requires_grad=True), torch.nn.SyncBatchNorm),
    (dict(type='BN', requires_grad=False, eps=1e-3), torch.nn.BatchNorm2d),
])
def test_norm_cfg_sets_all_norms(norm_cfg, types):
    backbone = LambdaResNet(50, norm_cfg=norm_cfg)
    norms = [m for m in backbone.modules() if isinstance(
        m, (torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm))]
    assert all(isinstance(m, types) for m in norms)
    # 4 in the stem, 3 per block, 4 in the shortcuts, 2 per lambda layer
    assert len(norms) == 4 + 16 * 3 + 4 + 4 * 2
    trained = norm_cfg.get('requires_grad', True)
    assert all(m.weight.requires_grad == trained for m in norms)
    assert all(m.eps == norm_cfg.get('eps', 1e-5) for m in norms)


def test_fewer_stages_and_outputs():
    backbone = LambdaResNet('26t', num_stages=3, out_indices=(0, 2)).eval()
    assert not hasattr(backbone, 'layer4')
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert [x.shape[1] for x in maps] == [256, 1024]


def test_other_lambda_layers():
    backbone = on_meta(
        50, lambda_blocks='all', lambda_layer=dict(
            intra_depth=4, context_size=7, norm_cfg=dict(type='GN', num_groups=2)))
    layers = [m for m in backbone.modules() if isinstance(m, LambdaLayer)]
    assert len(layers) == 16
    assert all(m.intra_depth == 4 and m.context_size == (7, 7)
               and isinstance(m.norm_q, torch.nn.GroupNorm) for m in layers)
    assert lambda_blocks(on_meta(50, lambda_blocks=[[0, 2]])) == {(0, 2)}
    assert lambda_blocks(on_meta(50, lambda_blocks=[])) == set()


@pytest.mark.parametrize('library, base, options', [
    ('mmdet', 'mask-rcnn_r50_fpn.py', dict(strides=(1, 2, 2, 2))),
    ('mmseg', 'fpn_r50.py', dict(strides=(1, 2, 2, 2))),
    ('mmseg', 'deeplabv3plus_r50-d8.py', dict(dilations=(1, 1, 2, 4))),
])
def test_it_accepts_the_resnet_arguments_of_a_base_config(library, base, options):
    configs = Path(import_module(library).__file__).parent / '.mim' / 'configs'
    cfg = Config.fromfile(configs / '_base_' / 'models' / base)
    cfg.merge_from_dict(
        dict(model=dict(backbone=dict(type='LambdaResNet', init_cfg=None))))
    backbone = MODELS.build(cfg.model.backbone)
    assert isinstance(backbone, LambdaResNet)
    for name, value in options.items():
        assert getattr(backbone, name) == value


@pytest.mark.parametrize('options, error, words', [
    (dict(depth=18), ValueError, 'depth must be one of .* got 18'),
    (dict(depth='26'), ValueError, "depth must be one of .* got '26'"),
    (dict(num_stages=5), ValueError, 'num_stages must be at most 4, got 5'),
    (dict(strides=(1, 2)), ValueError, r'strides must have .* \(1, 2\)'),
    (dict(dilations=1), TypeError, 'dilations must be a list'),
    (dict(strides=(1, 2, 2, 0)), ValueError, 'strides must be at least 1'),
    (dict(out_indices=(0, 4)), ValueError, 'out_indices must .* from 0 to 3'),
    (dict(out_indices=()), ValueError, 'out_indices must'),
    (dict(style='caffe'), ValueError, "style must be 'pytorch'.* 'caffe'"),
    (dict(frozen_stages=5), ValueError, 'frozen_stages must be from -1 to 4'),
    (dict(frozen_stages='1'), TypeError, "frozen_stages must be an int, got '1'"),
    (dict(norm_cfg=dict(type='Nope')), ValueError, 'norm_cfg.*Nope'),
    (dict(norm_eval='False'), TypeError, "norm_eval must be True.*'False'"),
    (dict(act_cfg='ReLU'), TypeError, "act_cfg must be a dict.*'ReLU'"),
    (dict(act_cfg=dict(type='Nope')), ValueError, 'act_cfg.*Nope'),
    (dict(lambda_layer=dict(type='Nope')), ValueError, 'lambda_layer.*Nope'),
    (dict(lambda_blocks='some'), ValueError, "lambda_blocks must .* 'some'"),
    (dict(lambda_blocks=[(3, 3)]), ValueError, r'pairs .* \[\(3, 3\)\]'),
    (dict(lambda_blocks=[3]), TypeError, 'lambda_blocks must be'),
    (dict(lambda_layer=dict(context_size=4)), ValueError, 'context_size must'),
    (dict(norm_cfg=dict(type='GN', num_groups=48)), ValueError, 'num_'),
])
def test_bad_arguments(options, error, words):
    with pytest.raises(error, match=words):
        LambdaResNet(**{'depth': 50, **options})
