"""A checkpoint of other classes gives a warning with both lists."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from helpers.runs import run_test
from helpers.square_detector import DETECTOR
from helpers.synthetic_data import write_coco_squares
from torch import nn

from fpt_plugin.commands.common import load_model
from fpt_plugin.engine.checkpoint_classes import classes_of, describe_mismatch

TREES = ('oak', 'elm', 'fir')


class Detector(nn.Module):

    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, classes, 1)


def checkpoint_of(model, classes=TREES, **meta):
    return dict(state_dict=model.state_dict(),
                meta=dict(dataset_meta=dict(classes=classes), **meta))


@pytest.mark.parametrize('trained, tested, words', [
    (TREES, TREES, None),
    (('dog', 'cat'), TREES, ['2 tensors of another shape', 'head.weight',
                             '2 classes (dog, cat)', '3 classes (oak, elm, fir)']),
    (TREES[::-1], TREES, ['3 classes (fir, elm, oak)', 'in another order']),
    (TREES, TREES[:2], ['3 classes (oak, elm, fir)', '2 classes (oak, elm)']),
    (tuple(map(str, range(80))), TREES, ['80 classes (0, 1', '60 more']),
])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('in_wrapper', [True, False])
def test_classes(trained, tested, words, prefix, in_wrapper):
    checkpoint = checkpoint_of(Detector(len(trained)), trained)
    checkpoint['state_dict'] = {
        prefix + key: value for key, value in checkpoint['state_dict'].items()}
    model = Detector(len(tested))
    if in_wrapper:
        wrapper = nn.Module()
        wrapper.module = model
        model = wrapper
    message = describe_mismatch(checkpoint, model, list(tested))
    assert bool(message) == bool(words)
    assert all(word in message for word in words or ())


@pytest.mark.parametrize('checkpoint, classes', [
    (Detector().state_dict(), TREES), (dict(state_dict=Detector().state_dict()), TREES),
    (checkpoint_of(Detector(), None), TREES),
    (dict(checkpoint_of(Detector()), meta=None), TREES),
    (checkpoint_of(Detector()), None)])
def test_without_the_classes_shapes_are_compared(checkpoint, classes):
    assert describe_mismatch(checkpoint, Detector(), classes) == ''
    assert 'tensors of another shape' in describe_mismatch(
        checkpoint, Detector(2), classes and classes[:2])


@pytest.mark.parametrize('meta', [
    dict(dataset_meta=dict(classes=TREES)), dict(dataset_meta=dict(CLASSES=TREES)),
    dict(CLASSES=list(TREES))])
def test_metadata_of_older_versions(meta):
    assert classes_of(dict(meta=meta)) == TREES


@pytest.mark.parametrize('classes, changes, words', [
    (None, {}, None),
    (('cat', ), {}, r'1 classes \(cat\), and is tested on'),
    (('cat', 'dog'), {'model.bbox_head.num_classes': 2},
     r'tensors of another shape .*bbox_head.*2 classes \(cat, dog\)'),
])
def test_the_command_warns(classes, changes, words, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    write_coco_squares('data')
    Path('detector.py').write_text(DETECTOR)
    model, cfg = load_model('detector.py', changes)
    own = cfg.test_dataloader.dataset.metainfo.classes
    torch.save(checkpoint_of(model, classes or own), 'best.pth')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run_test('detector.py', 'best.pth', tmp_path / 'work')
    texts = [str(w.message) for w in caught if 'does not fit' in str(w.message)]
    if words is None:
        assert not texts
    else:
        assert len(texts) == 1 and re.search(words, texts[0])
