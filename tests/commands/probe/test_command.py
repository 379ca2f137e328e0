"""The command ``probe`` on drawn images."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from helpers.pixel_gpts import SMALL
from mmengine.config import Config

from fpt_plugin import PixelGPT
from fpt_plugin.commands.probe import command, features

SIZE, COLOURS = (6, 8), 64
# Colours that are the concept: no line divides them from the others.
CONCEPT = torch.randperm(COLOURS, generator=torch.Generator().manual_seed(0)) < 32


def palette():
    """Four levels a channel."""
    steps = torch.arange(4) * 80.
    return torch.cartesian_prod(steps, steps, steps)


def model_cfg(**settings):
    return dict(type='PixelGPT', size=dict(SMALL), image_size=SIZE, colours=COLOURS,
                **settings)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Config and checkpoint of a model whose first layer knows the concept."""
    folder = tmp_path_factory.mktemp('model')
    cfg = model_cfg()
    Config(dict(default_scope='mmengine', model=cfg)).dump(folder / 'config.py')
    torch.manual_seed(0)
    made = PixelGPT(**{k: v for k, v in cfg.items() if k != 'type'}, palette=palette())
    with torch.no_grad():
        made.net.colours.weight[:, 0] = CONCEPT * 2. - 1
    torch.save(dict(state_dict=made.state_dict()), folder / 'model.pth')
    return [str(folder / 'config.py'), str(folder / 'model.pth')]


def draw(folder, count, seed, dense):
    """Images of random colours; labels: the concept, of pixels or of most of them."""
    rng = np.random.default_rng(seed)
    maps = folder.with_name(f'{folder.name}-maps')
    for i in range(count):
        tokens = rng.integers(COLOURS, size=SIZE)
        if not dense:  # nearly all of one kind
            kind = np.flatnonzero(CONCEPT.numpy() == bool(i % 2))
            tokens = rng.choice(kind, size=SIZE)
        image = palette().numpy().astype(np.uint8)[tokens]
        place = folder if dense else folder / f'class{i % 2}'
        for path in (place, maps):
            path.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f'{i}.png'), image)
        labels = CONCEPT.numpy()[tokens].astype(np.uint8)
        labels[0, :3] = 255
        if dense:
            cv2.imwrite(str(maps / f'{i}.png'), labels)
    return [str(folder), str(maps)]


@pytest.fixture(scope='module')
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp('maps')
    return [draw(folder / part, count, seed, True)
            for seed, (part, count) in enumerate((('train', 30), ('val', 10)))]


def run(*args):
    return command.main(command.parser().parse_args([str(a) for a in args]))


def figures(found, network, layer, metric='accuracy'):
    return [r[metric] for r in found['records']
            if (r['network'], r['layer']) == (network, layer)]


def test_label_maps(model, maps, tmp_path, capsys):
    (train, train_maps), (val, val_maps) = maps
    found = run(*model, '--images', train, val, '--label-maps', train_maps, val_maps,
                '--random', '--out', tmp_path / 'out', '--seeds', 0, 1,
                '--pixels', 40, '--weight-decay', 1e-4)
    assert found == json.loads((tmp_path / 'out/probe.json').read_text())
    assert found['metric'] == 'mean_iou' and found['images'] == [30, 10]
    assert found['classes'] == ['0', '1']
    assert len(found['records']) == 2 * (3 + 3 + 3)
    assert min(figures(found, 'trained', 0)) > 0.99
    assert min(figures(found, 'trained', 0, 'mean_iou')) > 0.98
    assert max(figures(found, 'random', 0)) < 0.9
    assert max(figures(found, 'raw', 'colour')) < 0.75
    first, second = figures(found, 'random', 1)
    assert first != second
    printed = capsys.readouterr().out
    assert 'Best layer: 0' in printed and 'random weights' in printed
    assert cv2.imread(str(tmp_path / 'out/probe.png')).size > 10000


def test_image_labels(model, tmp_path):
    folders = [draw(tmp_path / part, 20, seed, False)[0]
               for seed, part in enumerate(('train', 'val'))]
    found = run(*model, '--images', *folders, '--out', tmp_path / 'out', '--seeds', 0)
    assert found['metric'] == 'accuracy' and found['classes'] == ['class0', 'class1']
    assert {r['layer'] for r in found['records']} == {
        0, 1, 2, 'mean colour', 'all pixels'}
    assert figures(found, 'trained', 0) == [1.]


def test_layer_by_layer_is_the_same(model, maps, tmp_path, monkeypatch):
    args = [*model, '--images', maps[0][0], '--label-maps', maps[0][1], '--seeds', 0,
            '--layers', 0, 2]
    wanted = run(*args, '--out', tmp_path / 'a')
    assert wanted['images'] == [24, 6]  # a fifth is held out
    assert len(wanted['records']) == 2 + 3
    monkeypatch.setattr(features, 'MEMORY', 1)
    monkeypatch.setattr(features, 'BATCH', 7)
    found = run(*args, '--out', tmp_path / 'b')
    assert found['records'] == wanted['records']


def test_features_are_those_of_the_pixels(model, maps):
    """What a classifier is given, against the model's own maps."""
    from fpt_plugin.commands.probe.data import read_data
    net = command._build(command.parser().parse_args(
        [*model, '--images', 'x']), None)
    net.palette.set(palette())
    training, evaluation, _ = read_data(
        [maps[0][0]], [maps[0][1]], SIZE)
    assert training.labels.shape == (24, 48) and (training.labels[:, :3] == -1).all()
    tokens = net.palette.tokens(training.images.float()).flatten(1)
    labelled = training.labels >= 0
    assert torch.equal(CONCEPT[tokens][labelled].long(), training.labels[labelled])
    source = features.network_source(net, [0, 1, 2], dense=True)
    chosen = features.draw_pixels(training.labels, 5, 0)
    got = features.gather(source, [1], training, [chosen])[0][0]
    maps_ = torch.cat([net.features(image[None].float(), [1])[0]
                       for image in training.images])
    wanted = maps_.flatten(2).transpose(1, 2)[chosen]
    torch.testing.assert_close(got, wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('change, error, text', [
    (lambda a, b: ['--images', a, 'nowhere', '--label-maps', b, b],
     FileNotFoundError, 'nowhere'),
    (lambda a, b: ['--images', a, a, '--label-maps', b], ValueError,
     '--label-maps must name a folder for each .* 2, got 1'),
    (lambda a, b: ['--images', a], ValueError, 'a folder for each class'),
    (lambda a, b: ['--images', 'nowhere'], FileNotFoundError, 'nowhere'),
    (lambda a, b: ['--images', a, '--label-maps', a], ValueError,
     'label map of one channel'),
    (lambda a, b: ['--images', a, '--label-maps', 'nowhere'], FileNotFoundError,
     'must have a label map'),
    (lambda a, b: ['--images', a, '--label-maps', b, '--ignore', 0, 1, 255],
     ValueError, 'must have labelled images'),
    (lambda a, b: ['--images', a, '--label-maps', b, '--ignore', 1, 255],
     ValueError, 'at least two classes'),
    (lambda a, b: ['--images', a, '--label-maps', b, '--layers', 3], ValueError,
     r'--layers must be in 0\.\.2, got \[3\]'),
    (lambda a, b: ['--images', a, '--label-maps', b, '--weight-decay', -1],
     ValueError, '--weight-decay'),
])
def test_bad_input_is_named(model, maps, tmp_path, change, error, text):
    with pytest.raises(error, match=text):
        run(*model, *change(*maps[0]), '--out', tmp_path / 'out')


def test_files_and_other_models_are_refused(model, maps, tmp_path):
    args = ['--images', maps[0][0], '--label-maps', maps[0][1], '--out', tmp_path]
    (tmp_path / 'probe.json').write_text('{}')
    with pytest.raises(FileExistsError, match='--force'):
        run(*model, *args)
    Config(dict(default_scope='mmengine', model=dict(
        type='IPT', tasks=('sr2', ), channels=4, crop=12, depth=1,
        num_heads=3, overlap=4))).dump(tmp_path / 'ipt.py')
    with pytest.raises(ValueError, match='must be a PixelGPT, got IPT'):
        run(tmp_path / 'ipt.py', model[1], *args, '--force')
