"""Figures of attention, and the command that draws them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers.attention_models import SEGMENTOR, config
from matplotlib import colormaps

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
    PixelAttention,
    attention_branches,
)
from fpt_plugin.commands.visualize_attention.network_input import (
    NetworkView,
    network_views,
)


@pytest.mark.parametrize('row, column, padded', [
    (0, 0, False), (5, 7, False), (3, 1, False), (2, 3, True)])
def test_the_heat_map_is_at_its_place(tmp_path, row, column, padded):
    """A weight of 1 in a 6x8 map over a 60x80 image, or its padded double."""
    weights = np.zeros((6, 8), np.float32)
    weights[row, column] = 1
    inputs = torch.zeros(1, 3, 120, 160) if padded else torch.zeros(1, 3, 60, 80)
    branch = Branch('ST', 'P3', 'P3', (0, 0), attentions=[
        PixelAttention((41, 23), NetworkView(inputs, (1., 1.)), (0, 0), (6, 8),
                       weights, 48, 1., 0.)])
    white = np.full((60, 80, 3), 255, np.uint8)
    out = draw(white, [branch], tmp_path / 'a.png', '')
    drawn = cv2.imread(str(out)).astype(int)
    left, bottom, width, height = _Sheet(1, 1, 80 / 60, large=True).place(0, 0)
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
    # The marker: cyan, over the query pixel.
    rows, columns = np.nonzero((panel[..., 0] > 200) & (panel[..., 2] < 60))
    assert abs(rows.mean() / scale - 23.5) < 0.7
    assert abs(columns.mean() / scale - 41.5) < 0.7


def test_figure_without_maps(tmp_path):
    branch = Branch('RT', 'P3', 'P2', (1, 0),
                    channel_weights=[np.zeros(4), np.ones(4)])
    out = draw(np.zeros((5, 5, 3), np.uint8), [branch], tmp_path / 'a.png', '')
    assert cv2.imread(str(out)) is not None


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A config and a checkpoint as DDP saves it, which tests do not change."""
    folder = tmp_path_factory.mktemp('made')
    cfg = config()
    cfg.dump(folder / 'config.py')
    state = load_model(cfg)[0].state_dict()
    torch.save(dict(meta=dict(epoch=1), state_dict={
        f'module.{k}': v for k, v in state.items()}), folder / 'model.pth')
    return folder


@pytest.fixture
def run(tmp_path, image, made, monkeypatch):
    """Run the command in a folder with config, checkpoint and image."""
    for name in ('config.py', 'model.pth'):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return lambda *flags, checkpoint='model.pth': main(parser().parse_args(
        ['config.py', checkpoint, 'image.png', *flags]))


def test_command(run, tmp_path, capsys):
    branches = run('--point', '60,31')
    out = tmp_path / 'attention_image.png'
    assert out.read_bytes().startswith(b'\x89PNG')
    printed = capsys.readouterr().out
    assert all(branch.title in printed for branch in branches)
    assert 'attention_image.png' in printed
    # The weights of the checkpoint were used.
    model, cfg = load_model(config())
    state = torch.load('model.pth', weights_only=True)['state_dict']
    model.load_state_dict({k[7:]: v for k, v in state.items()})
    want = attention_branches(
        model, network_views(model, cfg, 'image.png'), [(60, 31)])
    for a, b in zip(branches, want):
        assert all(np.array_equal(x.weights, y.weights)
                   for x, y in zip(a.attentions, b.attentions))
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match='--force replaces it'):
        run('--point', '1,1')
    assert out.read_bytes() == before
    run('--grid', '2', '--level', 'P3', '--force', checkpoint='none')
    assert out.read_bytes() != before
    assert not list(tmp_path.glob('.*partial'))


def test_other_heads_do_not_matter(run, tmp_path):
    state = torch.load('model.pth', weights_only=True)
    for key in state['state_dict']:
        if 'head' in key:
            state['state_dict'][key] = torch.zeros(3)
    torch.save(state, 'heads.pth')
    run('--point', '1,1', '--level', 'P5', checkpoint='heads.pth')
    assert (tmp_path / 'attention_image.png').exists()


@pytest.mark.parametrize('saved, used, words', [
    (lambda: config(type='FPN', num_outs=5), {},
     r'keys of the model are missing \(neck.self_transformers\.'),
    (lambda: config(embed_channels=64), {},
     r'other FPT branches .* is \(128, 64, 3, 3\) in the checkpoint'),
    (lambda: config(preset='full'), {},
     r"other FPT branches .*preset='full'.*Version 0.1.0"),
    (lambda: config(SEGMENTOR), {}, r'keys of the model are missing \(backbone\.'),
    (lambda: config(grounding_transformer=None), {},
     r'other FPT branches .*fusions.1.reduce.weight .*trained with\.$'),
    (config, dict(rendering_transformer=None),
     r'keys have no place in it \(rendering_transformers\.2_1.*trained with\.$'),
    ({'fc.weight': torch.zeros(2, 2)}, {},
     r'are missing \(backbone\.\*, neck\.\*\)$'),
    (b'no checkpoint', {}, 'is not a checkpoint'),
])
def test_checkpoints_of_other_models(image, saved, used, words):
    path, out = image.with_name('other.pth'), image.with_name('o.png')
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    else:
        torch.save(saved if isinstance(saved, dict) else
                   load_model(saved())[0].state_dict(), path)
    with pytest.raises(ValueError, match=f'other.pth.*{words}'):
        visualize_attention(config(**used), path, image, out, (1, 1))
    assert not out.exists()


@pytest.mark.parametrize('flags, words', [
    (('--point', '110,5'), 'width is 110 and height 70 .*got 110,5'),
    (('--point', '5,70'), 'x from 0 to 109, y from 0 to 69.*got 5,70'),
    (('--point=-1,5', ), 'got -1,5'),
    (('--grid', '0'), 'grid must be at least 1, got 0'),
    (('--grid', '13'), 'grid must be at most 12'),
    (('--point', '5,5', '--level', 'P6'), 'P2, P3, P4, P5, got P6'),
    (('--point', '5,5', '--out', 'a.jpg'), 'must end in .png or .PNG, got a.jpg'),
    # The parser exits with 2.
    *((flags, '^2$') for flags in (
        (), ('--point', '5'), ('--point', 'a,b'), ('--point', '1.5,2'),
        ('--point', '1,2', '--grid', '3'))),
])
def test_bad_flags(run, tmp_path, flags, words):
    with pytest.raises(SystemExit if words == '^2$' else ValueError, match=words):
        run(*flags)
    assert not list(tmp_path.glob('*attention*'))


def test_inputs_are_not_overwritten(run, tmp_path):
    before = (tmp_path / 'image.png').read_bytes()
    (tmp_path / 'link.png').symlink_to(tmp_path / 'image.png')
    (tmp_path / 'folder.png').mkdir()
    for name, error, words in (
            ('image.png', ValueError, 'image.png is read here'),
            ('link.png', ValueError, 'link.png is read here'),
            ('folder.png', IsADirectoryError, 'name the file to write')):
        with pytest.raises(error, match=words):
            run('--point', '1,1', '--force', '--out', name)
    assert (tmp_path / 'image.png').read_bytes() == before


@pytest.mark.parametrize('neck, point, words', [
    ({}, None, 'either point or grid'),
    (dict(type='FPN', num_outs=5), (1, 1),
     'must have a neck of FPT, got FasterRCNN with the neck FPN'),
    (dict(self_transformer=None, grounding_transformer=None,
          rendering_transformer=None), (1, 1), 'must have a branch of FPT to show'),
])
def test_nothing_to_show(image, neck, point, words):
    with pytest.raises(ValueError, match=words):
        visualize_attention(config(**neck), None, image,
                            image.with_name('o.png'), point)
