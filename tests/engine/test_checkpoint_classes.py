"""A checkpoint of other classes is warned about, with both lists."""

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


def test_the_same_classes():
    assert describe_mismatch(checkpoint_of(Detector()), Detector(), list(TREES)) == ''


@pytest.mark.parametrize('trained, tested, words', [
    (('dog', 'cat'), TREES, ['2 tensors of another shape', 'head.weight',
                             '2 classes (dog, cat)', '3 classes (oak, elm, fir)']),
    (TREES[::-1], TREES, ['3 classes (fir, elm, oak)', 'in another order']),
    (TREES, TREES[:2], ['3 classes (oak, elm, fir)', '2 classes (oak, elm)']),
    (tuple(map(str, range(80))), TREES, ['80 classes (0, 1', '60 more']),
])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_other_classes(trained, tested, words, prefix):
    checkpoint = checkpoint_of(Detector(len(trained)), trained)
    checkpoint['state_dict'] = {
        prefix + key: value for key, value in checkpoint['state_dict'].items()}
    message = describe_mismatch(checkpoint, Detector(len(tested)), tested)
    for word in words:
        assert word in message


def test_inside_a_wrapper():
    wrapper = nn.Module()
    wrapper.module = Detector(2)
    assert '2 tensors of another shape' in describe_mismatch(
        checkpoint_of(Detector()), wrapper, TREES)


@pytest.mark.parametrize('checkpoint', [
    Detector().state_dict(), dict(state_dict=Detector().state_dict()),
    checkpoint_of(Detector(), None), dict(checkpoint_of(Detector()), meta=None)])
def test_what_does_not_tell_its_classes(checkpoint):
    assert describe_mismatch(checkpoint, Detector(), TREES) == ''
    assert 'tensors of another shape' in describe_mismatch(
        checkpoint, Detector(2), TREES[:2])


def test_a_data_set_without_classes():
    assert describe_mismatch(checkpoint_of(Detector()), Detector(), None) == ''


@pytest.mark.parametrize('meta', [
    dict(dataset_meta=dict(classes=TREES)), dict(dataset_meta=dict(CLASSES=TREES)),
    dict(CLASSES=list(TREES))])
def test_names_of_older_hosts(meta):
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
    said = [str(w.message) for w in caught if 'does not fit' in str(w.message)]
    if words is None:
        assert not said
    else:
        assert len(said) == 1
        with pytest.warns(UserWarning, match=words):
            warnings.warn(said[0], stacklevel=1)
