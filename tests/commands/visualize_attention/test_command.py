"""What is drawn is what the layers of real models compute, at its place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.oracles import randomise, relative_error
from helpers.shipped_configs import load
from matplotlib import colormaps
from mmengine.config import Config

from fpt_plugin import FPT
from fpt_plugin.commands.common import load_model
from fpt_plugin.commands.visualize_attention import figure as figure_module
from fpt_plugin.commands.visualize_attention.command import (
    main,
    parser,
    visualize_attention,
)
from fpt_plugin.commands.visualize_attention.figure import _Sheet, draw
from fpt_plugin.commands.visualize_attention.maps import (
    Branch,
    Gaze,
    attention_branches,
    chosen_level,
    level_names,
)
from fpt_plugin.commands.visualize_attention.model import branch_inputs, outermost_fpts
from fpt_plugin.commands.visualize_attention.network_input import (
    NetworkView,
    network_views,
)
from fpt_plugin.layers.mixture import pool_keys

ROOT = Path(__file__).resolve().parents[3]
DETECTOR = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
SEGMENTOR = 'quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py'
UFP = 'quickstart/sem-fpn_mobilenet-v2-d8_ufp-fpt_nuclei.py'
SIZE = (70, 110)  # height and width of the image
POINTS = [(0, 0), (109, 69), (60, 31)]


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), pixels)
    return tmp_path / 'image.png'


def config(name=DETECTOR, **neck):
    """A shipped config that sees images at a small size."""
    cfg = load(name)
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (160, 120)
    cfg.model.neck.update(neck)
    return cfg


def listed():
    """FPT as the second neck of a list."""
    cfg = config()
    fpn = dict(cfg.model.neck, type='FPN', num_outs=5)
    cfg.model.neck = [fpn, dict(type='FPT', pyramid=None, in_channels=128,
                                out_channels=128, num_levels=4)]
    return cfg


def stacked():
    """Two FPT, one after the other."""
    cfg = listed()
    cfg.model.neck.append(cfg.model.neck[1])
    return cfg


def nested():
    """FPT around FPT."""
    return config(pyramid=dict(type='FPT', num_levels=3), num_levels=2)


def teacher():
    """A detector inside of a teacher's pair."""
    cfg = config()
    preprocessor = cfg.model.data_preprocessor
    cfg.model = dict(
        type='SoftTeacher', detector=cfg.model, semi_train_cfg=dict(),
        semi_test_cfg=dict(predict_on='teacher'),
        data_preprocessor=dict(type='MultiBranchDataPreprocessor',
                               data_preprocessor=preprocessor))
    return cfg


def sliding():
    """A segmentor that is tested by crops."""
    cfg = config(SEGMENTOR)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(48, 48))
    return cfg


MODELS = dict(
    fpt=config,
    pafpn=lambda: config(pyramid=dict(type='PAFPN')),
    st=lambda: config(type='SelfTransformerNeck'),
    gt=lambda: config(type='GroundingTransformerNeck'),
    lgt=lambda: config(grounding_transformer=dict(
        type='LocalGroundingTransformer', window=3, pad='mask')),
    rt=lambda: config(type='RenderingTransformerNeck'),
    listed=listed,
    stacked=stacked,
    nested=nested,
    teacher=teacher,
    segmentor=lambda: config(SEGMENTOR),
    sliding=sliding,
    ufp=lambda: config(UFP),
)
MODELS.update((preset, lambda preset=preset: config(preset=preset))
              for preset in ('light', 'full', 'paper'))
MODELS['coarse'] = lambda: config(first_level=1)
MODELS['odd_strides'] = lambda: config(key_strides=[3, 2, 1], num_levels=3)


def prepared(cfg, image):
    """The model with all parameters of its FPT drawn, and its views."""
    model, cfg = load_model(cfg)
    for fpt in model.modules():
        if isinstance(fpt, FPT):
            for name in ('self', 'grounding', 'rendering'):
                for layer in getattr(fpt, f'{name}_transformers').values():
                    randomise(layer)
    return model, network_views(model, cfg, image)


def outputs(model, view):
    """What the branches of the FPT that runs last give, by a real pass."""
    runs = []
    handles = []
    for fpt in model.modules():
        if isinstance(fpt, FPT):
            handles.append(fpt.register_forward_pre_hook(
                lambda fpt, _: runs.append((fpt, {}))))
            for kind in (fpt.self_transformers, fpt.grounding_transformers,
                         fpt.rendering_transformers):
                for name, layer in kind.items():
                    handles.append(layer.register_forward_hook(
                        lambda layer, args, kwargs, out, name=name, fpt=fpt:
                        next(run for owner, run in reversed(runs)
                             if owner is fpt).update({name: (args, out)}),
                        with_kwargs=True))
    with torch.no_grad():
        model.extract_feat(view.inputs)
    for handle in handles:
        handle.remove()
    fpts = [fpt for fpt, _ in runs]
    last = [fpt for fpt in outermost_fpts(model) if fpt in fpts][-1]
    return last, next(run for fpt, run in reversed(runs) if fpt is last)


@pytest.mark.parametrize('name', MODELS)
def test_maps_give_the_outputs_of_the_model(name, image):
    model, views = prepared(MODELS[name](), image)
    branches = attention_branches(model, views, POINTS)
    seen = {}
    compared = 0
    for index, point in enumerate(POINTS):
        gaze = next((b.gazes[index] for b in branches if b.gazes), None)
        view = gaze.view if gaze else views[0]
        if id(view) not in seen:
            seen[id(view)] = outputs(model, view)
        fpt, run = seen[id(view)]
        assert len(branches) == len(run)
        for branch in branches:
            key = '{}_{}'.format(*branch.place)
            (x, *source), out = run[key]
            source = source[0] if source else x
            if branch.name == 'RT':
                layer = fpt.rendering_transformers[key]
                want = layer.channel_weights(source).flatten()
                errors = [relative_error(torch.from_numpy(w), want)
                          for w in branch.weights]
                assert min(errors) <= 1e-5
                assert len(branch.weights) == len({id(g.view) for b in branches
                                                   for g in b.gazes} or {0})
                continue
            layers = fpt.self_transformers if branch.name == 'ST' \
                else fpt.grounding_transformers
            gaze, stride = branch.gazes[index], branch.key_stride
            assert gaze.point == point and gaze.size == tuple(x.shape[2:])
            assert gaze.shares.shape == tuple(source.shape[2:])
            shares = torch.from_numpy(gaze.shares[::stride, ::stride])
            with torch.no_grad():
                value = layers[key].value(pool_keys(source, stride))[0]
            got = (shares * value).sum((1, 2))
            assert relative_error(got, out[0, :, gaze.cell[0],
                                           gaze.cell[1]]) <= 1e-4
            total = shares.sum().item() + gaze.outside
            assert total == pytest.approx(1, abs=1e-5)
            assert gaze.peak == pytest.approx(shares.max().item())
            assert 0 < gaze.peak * gaze.keys
            compared += 1
    kinds = {branch.name for branch in branches}
    assert kinds == {
        'st': {'ST'}, 'gt': {'GT'}, 'rt': {'RT'}, 'lgt': {'ST', 'LGT', 'RT'},
        'ufp': {'ST', 'LGT', 'RT'}, 'light': {'ST'}
    }.get(name, {'ST', 'GT', 'RT'})
    assert compared or name == 'rt'
    if name == 'sliding':
        assert len(seen) > 1
    if name == 'odd_strides':
        assert {b.key_stride for b in branches if b.gazes} == {3, 2, 1}


def test_nothing_of_the_transformer_is_run(image, monkeypatch):
    model, views = prepared(config(), image)
    monkeypatch.setattr(FPT, '_transform', None)
    fpt, = outermost_fpts(model)
    for layer in [*fpt.self_transformers.values(),
                  *fpt.grounding_transformers.values()]:
        monkeypatch.setattr(type(layer), 'forward', None)
    branches = attention_branches(model, views, POINTS[:1])
    assert len(branches) == 4 + 3 + 3  # P2 has no GT, and is not read by RT
    assert not fpt._forward_pre_hooks


def test_one_level(image):
    model, views = prepared(config(), image)
    every = {b.title: b for b in attention_branches(model, views, POINTS)}
    assert list(every)[:4] == ['ST P2', 'ST P3', 'GT P3 <- P4', 'GT P3 <- P5']
    some = attention_branches(model, views, POINTS, '4')
    assert [b.title for b in some] == ['ST P4', 'GT P4 <- P5', 'RT P4 <- P3']
    for branch in some:
        for a, b in zip(branch.gazes, every[branch.title].gazes):
            assert np.array_equal(a.shares, b.shares)
    with pytest.raises(ValueError, match='transforms, P2, P3, P4, P5, got P6'):
        attention_branches(model, views, POINTS, 'P6')


@pytest.mark.parametrize('neck, level, message', [
    (dict(first_level=1), 'P2', 'transforms, P3, P4, P5, got P2'),
    (dict(type='GroundingTransformerNeck'), 'P2',
     'transforms, P3, P4, P5, got P2'),
    (dict(type='GroundingTransformerNeck'), 'P5', 'got none at P5'),
    (dict(type='RenderingTransformerNeck'), 'P3', 'got none at P3'),
])
def test_a_level_without_branches(neck, level, message, image):
    model, views = prepared(config(**neck), image)
    assert attention_branches(model, views, POINTS, 'P4')
    with pytest.raises(ValueError, match=message):
        attention_branches(model, views, POINTS, level)


@pytest.mark.parametrize('neck', [
    dict(preset='light'), dict(), dict(preset='full'), dict(first_level=1)])
def test_pictures_of_every_preset(neck, image, tmp_path):
    model, views = prepared(config(**neck), image)
    branches = attention_branches(model, views, POINTS[:1])
    pixels = cv2.imread(str(image))
    assert cv2.imread(str(draw(pixels, branches, tmp_path / 'x.png', ''))).size


def test_windows(image):
    model, views = prepared(config(UFP), image)
    branch = next(b for b in attention_branches(model, views, POINTS)
                  if b.title == 'LGT P3a <- P3c')
    corner, _, middle = branch.gazes
    row, column = middle.cell
    assert middle.window == (row - 2, column - 2, row + 3, column + 3)
    assert middle.outside == pytest.approx(0, abs=1e-6)
    assert corner.window == (-2, -2, 3, 3) and corner.outside > 0.01
    inside = np.zeros(middle.shares.shape, bool)
    inside[row - 2:row + 3, column - 2:column + 3] = True
    assert middle.shares[inside].min() > 0 and not middle.shares[~inside].any()
    assert corner.keys == middle.keys == 25
    model, views = prepared(MODELS['lgt'](), image)
    corner = attention_branches(model, views, POINTS, 'P3')[1].gazes[0]
    assert corner.keys == 4 and corner.outside == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('sizes, inputs, names', [
    ([(200, 336), (100, 168), (50, 84), (25, 42)], (800, 1344),
     ['P2', 'P3', 'P4', 'P5']),
    ([(97, 97)] * 4, (769, 769), ['P3a', 'P3b', 'P3c', 'P3d']),
    ([(25, 9), (13, 5), (7, 3), (4, 2)], (100, 33), ['P2', 'P3', 'P4', 'P5']),
    ([(12, 16), (12, 16), (3, 4)], (96, 128), ['P3a', 'P3b', 'P5']),
    ([(1, 1)], (1, 1), ['P0']),
])
def test_level_names(sizes, inputs, names):
    assert level_names(sizes, inputs) == names


@pytest.mark.parametrize('level', ['P3b', '3b', 'p3B', '3B'])
def test_levels_are_asked_for_by_name(level):
    assert chosen_level(level, ['P3a', 'P3b', 'P5']) == 1
    with pytest.raises(ValueError, match='P3a, P3b, P5, got 3'):
        chosen_level('3', ['P3a', 'P3b', 'P5'])


# --------------------------------------------------------------------- picture


def one_hot(row, column, padded):
    """A share at one place of a 6x8 map over a 60x80 image, or its half."""
    shares = np.zeros((6, 8), np.float32)
    shares[row, column] = 1
    inputs = torch.zeros(1, 3, 120, 160) if padded else torch.zeros(1, 3, 60, 80)
    return Gaze((41, 23), NetworkView(inputs, (1., 1.)), (0, 0), (6, 8), shares,
                48, 1., 0.)


@pytest.mark.parametrize('row, column, padded', [(0, 0, False), (5, 7, False),
                                                 (3, 1, False), (2, 3, True)])
def test_heat_is_where_the_share_is(tmp_path, row, column, padded):
    branch = Branch('ST', 'P3', 'P3', (0, 0),
                    gazes=[one_hot(row, column, padded)])
    white = np.full((60, 80, 3), 255, np.uint8)
    out = draw(white, [branch], tmp_path / 'a.png', '')
    drawn = cv2.imread(str(out)).astype(int)
    sheet = _Sheet(1, 1, 80 / 60, large=True)
    left, bottom, width, height = sheet.place(0, 0)
    x0, x1 = (round(p * drawn.shape[1]) for p in (left, left + width))
    y0, y1 = (round((1 - p) * drawn.shape[0]) for p in (bottom + height, bottom))
    panel = drawn[y0:y1, x0:x1]
    red = np.array(colormaps[figure_module.COLOURS](1.0)[2::-1]) * 255
    red = red * (1 - figure_module.UNDER_PEAK) + 255 * figure_module.UNDER_PEAK
    hot = np.abs(panel - red).max(axis=2) < 40
    side = 20 if padded else 10  # of a cell, in pixels of the image
    rows, columns = np.nonzero(hot)
    scale = panel.shape[0] / 60
    assert np.isclose(hot.sum(), (side * scale)**2, rtol=0.12)
    assert abs(rows.mean() / scale - (row + 0.5) * side) < 1
    assert abs(columns.mean() / scale - (column + 0.5) * side) < 1
    # The marker: cyan, over the asked pixel.
    rows, columns = np.nonzero((panel[..., 0] > 200) & (panel[..., 2] < 60))
    assert abs(rows.mean() / scale - 23.5) < 0.7
    assert abs(columns.mean() / scale - 41.5) < 0.7


def test_figure_without_maps(tmp_path):
    branch = Branch('RT', 'P3', 'P2', (1, 0), weights=[np.zeros(4), np.ones(4)])
    out = draw(np.zeros((5, 5, 3), np.uint8), [branch], tmp_path / 'a.png', '')
    assert cv2.imread(str(out)) is not None


# --------------------------------------------------------------------- command


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A config and a checkpoint as DDP saves it. Tests do not change them."""
    folder = tmp_path_factory.mktemp('made')
    cfg = config()
    cfg.dump(folder / 'config.py')
    model, _ = load_model(cfg)
    torch.save(
        dict(meta=dict(epoch=1),
             state_dict={f'module.{k}': v
                         for k, v in model.state_dict().items()}),
        folder / 'model.pth')
    return folder


@pytest.fixture
def files(tmp_path, image, made):
    """Config, checkpoint and image of a test."""
    for name in ('config.py', 'model.pth'):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def run(folder, *flags, config='config.py', checkpoint='model.pth',
        image='image.png'):
    words = [str(folder / config), checkpoint if checkpoint == 'none' else
             str(folder / checkpoint), str(folder / image)]
    return main(parser().parse_args([*words, *flags]))


def test_command(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    branches = run(files, '--point', '60,31')
    out = files / 'attention_image.png'
    assert out.read_bytes().startswith(b'\x89PNG')
    printed = capsys.readouterr().out
    for branch in branches:
        assert branch.title in printed
    assert 'attention_image.png' in printed
    # The checkpoint's weights were used.
    model, cfg = load_model(config())
    state = torch.load(files / 'model.pth', weights_only=True)['state_dict']
    model.load_state_dict({k[7:]: v for k, v in state.items()})
    want = attention_branches(model, network_views(
        model, cfg, files / 'image.png'), [(60, 31)])
    for a, b in zip(branches, want):
        assert all(np.array_equal(x.shares, y.shares)
                   for x, y in zip(a.gazes, b.gazes))
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match='--force replaces it'):
        run(files, '--point', '1,1')
    assert out.read_bytes() == before
    run(files, '--grid', '2', '--level', 'P3', '--force', checkpoint='none')
    assert out.read_bytes() != before
    assert not list(files.glob('.*partial'))


def test_other_heads_do_not_matter(files):
    state = torch.load(files / 'model.pth', weights_only=True)
    for key in list(state['state_dict']):
        if 'head' in key:
            state['state_dict'][key] = torch.zeros(3)
    torch.save(state, files / 'heads.pth')
    run(files, '--point', '1,1', '--level', 'P5', '--out', str(files / 'o.png'),
        checkpoint='heads.pth')
    assert (files / 'o.png').exists()


def another(folder, change):
    """A checkpoint of another model than the config's."""
    path = folder / 'other.pth'
    if change == 'plain':
        model = load_model(config(type='FPN', num_outs=5))[0]
        torch.save(model.state_dict(), path)
    elif change in ('width', 'old'):
        model = load_model(config(embed_channels=64) if change == 'width' else
                           config(preset='full'))[0]
        torch.save(model.state_dict(), path)
    elif change == 'segmentor':
        torch.save(load_model(config(SEGMENTOR))[0].state_dict(), path)
    elif change == 'more':
        model = load_model(config(grounding_transformer=None))[0]
        torch.save(model.state_dict(), path)
    elif change == 'classifier':
        torch.save(dict(state_dict={'fc.weight': torch.zeros(2, 2)}), path)
    else:
        path.write_bytes(b'no checkpoint')
    return path.name


@pytest.mark.parametrize('change, words', [
    ('plain', r'keys of the model are missing \(neck.self_transformers\.'),
    ('width', r'other FPT branches .* is \(128, 64, 3, 3\) in the checkpoint'),
    ('old', r"other FPT branches .*preset='full'.*Version 0.1.0"),
    ('segmentor', r'keys of the model are missing \(backbone\.'),
    ('more', r'other FPT branches .*fusions.1.reduce.weight .*trained with\.$'),
    ('classifier', r'are missing \(backbone\.\*, neck\.\*\)$'),
    ('bytes', 'is not a checkpoint'),
])
def test_checkpoints_of_other_models(files, change, words):
    out = files / 'o.png'
    with pytest.raises(ValueError, match=f'other.pth.*{words}'):
        run(files, '--point', '1,1', '--out', str(out),
            checkpoint=another(files, change))
    assert not out.exists()


def test_a_checkpoint_with_more_than_the_model(files):
    cfg = config(rendering_transformer=None)
    cfg.dump(files / 'less.py')
    with pytest.raises(ValueError, match=r'keys have no place in it '
                       r'\(rendering_transformers\.2_1.*trained with\.$'):
        run(files, '--point', '1,1', '--out', str(files / 'o.png'),
            config='less.py')


@pytest.mark.parametrize('flags, words', [
    (('--point', '110,5'), 'width is 110 and height 70 .*got 110,5'),
    (('--point', '5,70'), 'x from 0 to 109, y from 0 to 69.*got 5,70'),
    (('--point=-1,5', ), 'got -1,5'),
    (('--grid', '0'), 'grid must be at least 1, got 0'),
    (('--grid', '13'), 'grid must be at most 12'),
    (('--point', '5,5', '--level', 'P6'), 'P2, P3, P4, P5, got P6'),
    (('--point', '5,5', '--out', 'a.jpg'), 'must end in .png or .PNG, got a.jpg'),
])
def test_bad_flags(files, monkeypatch, flags, words):
    monkeypatch.chdir(files)
    with pytest.raises(ValueError, match=words):
        run(files, *flags)
    assert not list(files.glob('*attention*'))


@pytest.mark.parametrize('flags', [
    (), ('--point', '5'), ('--point', 'a,b'), ('--point', '1,2', '--grid', '3'),
    ('--point', '1.5,2')
])
def test_flags_that_cannot_be_read(files, flags):
    with pytest.raises(SystemExit):
        run(files, *flags)


def test_what_is_read_is_not_replaced(files):
    before = (files / 'image.png').read_bytes()
    with pytest.raises(ValueError, match='image.png is read here'):
        run(files, '--point', '1,1', '--force', '--out',
            str(files / 'image.png'))
    (files / 'link.png').symlink_to(files / 'image.png')
    with pytest.raises(ValueError, match='link.png is read here'):
        run(files, '--point', '1,1', '--force', '--out', str(files / 'link.png'))
    (files / 'folder.png').mkdir()
    with pytest.raises(IsADirectoryError, match='name the file to write'):
        run(files, '--point', '1,1', '--force', '--out',
            str(files / 'folder.png'))
    assert (files / 'image.png').read_bytes() == before


def test_point_or_grid(files):
    with pytest.raises(ValueError, match='either point or grid'):
        visualize_attention(files / 'config.py', None, files / 'image.png',
                            files / 'o.png')


@pytest.mark.parametrize('neck, words', [
    (dict(type='FPN', num_outs=5), 'must have a neck of FPT, got FasterRCNN with '
     'the neck FPN'),
    (dict(self_transformer=None, grounding_transformer=None,
          rendering_transformer=None), 'must have a branch of FPT to show'),
])
def test_models_with_nothing_to_show(image, neck, words):
    cfg = config(**neck)
    with pytest.raises(ValueError, match=words):
        visualize_attention(cfg, None, image, image.parent / 'o.png', (1, 1))


def test_an_fpt_that_is_not_used(image):
    model, views = prepared(config(), image)
    model.spare, model.neck = model.neck, torch.nn.Identity()
    with pytest.raises(ValueError, match='is not used'):
        branch_inputs(model, views[0].inputs)


def test_the_tool_says_what_is_wrong(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / 'tools/visualize_attention.py'), 'a.py',
         'b.pth', str(tmp_path / 'c.png'), '--point', '1,1'],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert re.match(r'visualize_attention failed: .*c\.png', last)
    assert not list(tmp_path.iterdir())


def test_config_objects_are_named(image):
    out = image.parent / 'o.png'
    cfg = Config(config().to_dict())
    branches = visualize_attention(cfg, None, image, out, grid=1, level='P5')
    assert out.exists() and branches[0].title == 'ST P5'
    assert branches[0].gazes[0].point == (55, 35)
