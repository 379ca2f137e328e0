"""Labels that are no classes are refused, and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fpt_plugin import SegLabelCheckHook

SPLITS = ('train', 'val', 'test')


class Head(nn.Module):

    def __init__(self, num_classes, ignore_index=255):
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index


class Wrapper(nn.Module):
    """As test-time augmentation wraps a segmentor."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def segmentor(*heads):
    model = nn.Module()
    model.decode_head = heads[0] if len(heads) == 1 else nn.ModuleList(heads)
    return model


def runner_of(model, classes=4):
    loader = SimpleNamespace(
        dataset=SimpleNamespace(metainfo=dict(classes=tuple('abcdefgh'[:classes]))))
    return SimpleNamespace(
        model=model, **{f'{split}_dataloader': loader for split in SPLITS})


def sample(*labels, path='gt/a.png'):
    data = torch.tensor(labels).view(1, 1, -1)
    return SimpleNamespace(
        gt_sem_seg=SimpleNamespace(data=data), seg_map_path=path)


def check(model, samples, split='train', hook=None, **kwargs):
    method = getattr(hook or SegLabelCheckHook(), f'before_{split}_iter')
    method(runner_of(model, **kwargs), 0, dict(data_samples=samples))


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('labels', [(0, 4), (0, -1), (3, 254), (7, 9, 255)])
def test_outside(split, labels):
    outside = sorted(v for v in labels if not 0 <= v < 4 and v != 255)
    with pytest.raises(ValueError) as error:
        check(segmentor(Head(4)), [sample(0, 3), sample(*labels)], split)
    message = str(error.value)
    assert f'got {outside}. ' in message
    assert 'gt/a.png must hold labels from 0 to 3' in message


@pytest.mark.parametrize('split', SPLITS)
def test_inside(split):
    check(segmentor(Head(4)), [sample(0, 3, 255), sample(255)], split)
    check(segmentor(Head(4)), [SimpleNamespace(img_path='a.png')], split)
    check(segmentor(Head(4)), [], split)


def test_what_the_head_ignores():
    check(segmentor(Head(2, ignore_index=9)), [sample(0, 1, 9)])
    with pytest.raises(ValueError, match=r'or 9, .* got \[255\]'):
        check(segmentor(Head(2, ignore_index=9)), [sample(0, 255)])
    check(segmentor(Head(2)), [sample(0, 7)], hook=SegLabelCheckHook(7))


def test_one_channel_tells_one_from_zero():
    head = Head(1)
    head.out_channels = 1  # as mmseg's heads for a loss with use_sigmoid
    check(segmentor(head), [sample(0, 1, 255)])
    with pytest.raises(ValueError, match=r'from 0 to 1, .* got \[2\]'):
        check(segmentor(head), [sample(0, 2)])


def test_the_last_head_of_a_cascade_counts():
    model = segmentor(Head(2), Head(5))
    check(model, [sample(4)])
    with pytest.raises(ValueError, match=r'0 to 4.*\[5\]'):
        check(model, [sample(5)])


def test_views_of_test_time_augmentation():
    model = Wrapper(segmentor(Head(4)))
    check(model, [[sample(3)], [sample(0)]], 'test')
    with pytest.raises(ValueError, match='0 to 3'):
        check(model, [[sample(3)], [sample(4)]], 'test')


def test_without_a_head_the_data_set_counts():
    check(nn.Linear(1, 1), [sample(5)], classes=6)
    with pytest.raises(ValueError, match='0 to 5'):
        check(nn.Linear(1, 1), [sample(6)], classes=6)


def test_found_by_mmengine():
    from mmengine.registry import HOOKS
    hook = HOOKS.build(dict(type='fpt_plugin.SegLabelCheckHook'))
    assert isinstance(hook, SegLabelCheckHook)
