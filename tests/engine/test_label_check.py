"""Labels that are no classes are refused, and nothing else."""

import warnings
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


def head_of(num_classes, **settings):
    """A head of mmseg; its losses are given by their settings."""
    from mmengine.registry import MODELS, DefaultScope
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(dict(
            type='FCNHead', in_channels=4, channels=4, num_convs=1,
            num_classes=num_classes, **settings))


SOFTMAX = dict(type='CrossEntropyLoss', use_sigmoid=False)
SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)


@pytest.mark.parametrize('settings', [
    {}, dict(loss_decode=[SIGMOID, SOFTMAX]),
    dict(loss_decode=dict(type='DiceLoss', use_sigmoid=False)),
    dict(loss_decode=dict(type='TverskyLoss')),
    dict(loss_decode=dict(type='LovaszLoss', reduction='none')),
])
@pytest.mark.parametrize('auxiliary', [True, False])
def test_a_softmax_over_one_channel_never_learns(settings, auxiliary):
    head = head_of(1, **settings)
    model = segmentor(head_of(2) if auxiliary else head)
    model.auxiliary_head = head
    runner = runner_of(model)
    with pytest.raises(ValueError, match='FCNHead has one channel'):
        SegLabelCheckHook().before_train(runner)
    if not auxiliary:
        with pytest.raises(ValueError, match=r'0 to 0.*got \[1\]'):
            check(model, [sample(0, 1)])
    scores = torch.randn(1, 1, 2, 2, requires_grad=True)
    scores.softmax(1).square().sum().backward()
    assert not scores.grad.any()


@pytest.mark.parametrize('settings', [
    dict(loss_decode=SIGMOID), dict(loss_decode=dict(type='DiceLoss')),
    dict(loss_decode=dict(type='DiceLoss', use_sigmoid=False, activate=False)),
    dict(loss_decode=[dict(type='FocalLoss'), SIGMOID]),
    dict(loss_decode=dict(type='LovaszLoss', loss_type='binary', reduction='none')),
])
@pytest.mark.parametrize('classes', [1, 2])
def test_a_sigmoid_over_one_channel_does(settings, classes):
    model = segmentor(head_of(classes, out_channels=1, **settings))
    SegLabelCheckHook().before_train(runner_of(model))
    check(model, [sample(0, 1, 255)])
    SegLabelCheckHook().before_train(runner_of(segmentor(head_of(2))))


@pytest.mark.parametrize('shape', [(6, 8, 3), (3, 6, 8), (1, 3, 4), (1, 8, 6), (6, 8)])
@pytest.mark.parametrize('split', SPLITS)
def test_label_maps_of_another_shape(shape, split):
    given = sample(0)
    given.gt_sem_seg.data = torch.zeros(shape, dtype=torch.long)
    given.ori_shape = (6, 8)
    batch = dict(inputs=[torch.zeros(3, 6, 8)], data_samples=[given])
    runner = runner_of(segmentor(Head(4)))
    start = getattr(SegLabelCheckHook(), f'before_{split}_iter')
    with pytest.raises(ValueError, match=r'gt/a.png must have one channel.*\(6, 8\)'):
        start(runner, 0, batch)
    given.gt_sem_seg.data = torch.zeros((1, 6, 8), dtype=torch.long)
    start(runner, 0, batch)
    if split != 'train':  # images are scaled, labels are not
        start(runner, 0, dict(batch, inputs=[torch.zeros(3, 12, 16)]))


def look(labels, count, classes=2, split='train', reduce_zero_label=False):
    hook = SegLabelCheckHook()
    runner = runner_of(segmentor(Head(classes)), classes)
    runner.train_dataloader.dataset.metainfo['reduce_zero_label'] = reduce_zero_label
    for _ in range(count):
        getattr(hook, f'before_{split}_iter')(
            runner, 0, dict(data_samples=[sample(*labels)]))
    return hook


@pytest.mark.parametrize('labels, classes', [
    ((0, 255), 2), ((255, ), 2), ((0, 255), 19), ((0, 1, 255), 3), ((1, 255), 2)])
@pytest.mark.parametrize('reduce_zero_label', [True, False])
def test_a_class_that_never_occurs(labels, classes, reduce_zero_label):
    with pytest.warns(UserWarning, match='first 50 .* never occur') as found:
        look(labels, 120, classes, reduce_zero_label=reduce_zero_label)
    assert len(found) == 1


@pytest.mark.parametrize('split, end', [
    ('train', 'after_train'), ('val', 'after_val_epoch'),
    ('test', 'after_test_epoch')])
def test_a_class_that_never_occurs_in_few_label_maps(split, end):
    hook = look((0, 255), 3, split=split)
    with pytest.warns(UserWarning, match=f'first 3 label maps of {split} '):
        getattr(hook, end)(None)


@pytest.mark.parametrize('labels, classes', [
    ((0, 1, 255), 2), ((0, ), 2), ((0, 3, 7, 255), 19), ((*range(18), 255), 19)])
def test_rare_classes_are_not_named(labels, classes):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        look(labels, 60, classes).after_train(None)


def test_labels_beyond_the_classes_of_the_data():
    """The metrics would leave them out."""
    check(segmentor(Head(4)), [sample(3)], classes=2)
    with pytest.raises(ValueError, match=r'0 to 1.*got \[3\]'):
        check(segmentor(Head(4)), [sample(3)], 'val', classes=2)


def test_found_by_mmengine():
    from mmengine.registry import HOOKS
    hook = HOOKS.build(dict(type='fpt_plugin.SegLabelCheckHook'))
    assert isinstance(hook, SegLabelCheckHook)


@pytest.mark.parametrize('split', SPLITS)
def test_a_map_for_each_class(split):
    """As heads of the user's learn classes that overlap."""
    head = Head(4)
    head.out_channels = 4
    image, maps = torch.zeros(3, 6, 8), torch.zeros(4, 6, 8, dtype=torch.long)
    given = SimpleNamespace(gt_sem_seg=SimpleNamespace(data=maps), ori_shape=(6, 8))
    start = getattr(SegLabelCheckHook(), f'before_{split}_iter')
    batch = dict(inputs=[image], data_samples=[given])
    start(runner_of(segmentor(head)), 0, batch)
    for shape in ((3, 6, 8), (6, 8, 4), (4, 3, 4)):
        given.gt_sem_seg.data = torch.zeros(shape, dtype=torch.long)
        with pytest.raises(ValueError, match='must have one channel'):
            start(runner_of(segmentor(head)), 0, batch)
