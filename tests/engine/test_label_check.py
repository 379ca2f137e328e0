"""Wrong label maps are rejected with their file and values."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fpt_plugin import SegLabelCheckHook

SPLITS = ('train', 'val', 'test')


class Head(nn.Module):

    def __init__(self, num_classes, **settings):
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, 255
        for name, value in settings.items():
            setattr(self, name, value)


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
@pytest.mark.parametrize('labels', [
    (0, 4), (0, -1), (3, 254), (7, 9, 255), (0, 3, 255), (255, ), None])
def test_labels_of_each_split(split, labels):
    outside = sorted(v for v in labels or () if not 0 <= v < 4 and v != 255)
    given = SimpleNamespace(img_path='a.png') if labels is None else sample(*labels)
    if not outside:
        check(segmentor(Head(4)), [sample(0, 3), given], split)
        return
    with pytest.raises(ValueError) as error:
        check(segmentor(Head(4)), [sample(0, 3), given], split)
    assert f'got {outside}. ' in str(error.value)
    assert 'gt/a.png must hold labels from 0 to 3' in str(error.value)


@pytest.mark.parametrize('model, right, wrong, words', [
    (segmentor(Head(2, ignore_index=9)), (0, 1, 9), (0, 255), r'or 9, .* got \[255\]'),
    # mmseg's heads for a loss with use_sigmoid.
    (segmentor(Head(1, out_channels=1)), (0, 1, 255), (0, 2), r'0 to 1, .* got \[2\]'),
    # The last head of a cascade predicts.
    (segmentor(Head(2), Head(5)), (4, ), (5, ), r'0 to 4.*\[5\]'),
    # Wrapped, as by test-time augmentation.
    (SimpleNamespace(module=segmentor(Head(4))), (3, ), (4, ), '0 to 3'),
    # Without a head the classes of the data count.
    (nn.Linear(1, 1), (5, ), (6, ), '0 to 5'),
])
def test_the_labels_of_the_model(model, right, wrong, words):
    check(model, [[sample(*right)], [sample(0)]], classes=6)  # two views
    with pytest.raises(ValueError, match=words):
        check(model, [sample(*wrong)], classes=6)


def head_of(num_classes, **settings):
    """Build a head of mmseg."""
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
def test_a_softmax_over_one_channel_is_rejected(settings):
    head = head_of(1, **settings)
    for decode_head in (head, head_of(2)):
        model = segmentor(decode_head)
        model.auxiliary_head = head
        with pytest.raises(ValueError, match='FCNHead has one channel'):
            SegLabelCheckHook().before_train(runner_of(model))
    with pytest.raises(ValueError, match=r'0 to 0.*got \[1\]'):
        check(segmentor(head), [sample(0, 1)])


@pytest.mark.parametrize('settings', [
    dict(loss_decode=SIGMOID), dict(loss_decode=dict(type='DiceLoss')),
    dict(loss_decode=dict(type='DiceLoss', use_sigmoid=False, activate=False)),
    dict(loss_decode=[dict(type='FocalLoss'), SIGMOID]),
    dict(loss_decode=dict(type='LovaszLoss', loss_type='binary', reduction='none')),
])
@pytest.mark.parametrize('classes', [1, 2])
def test_a_sigmoid_over_one_channel_passes(settings, classes):
    model = segmentor(head_of(classes, out_channels=1, **settings))
    SegLabelCheckHook().before_train(runner_of(model))
    check(model, [sample(0, 1, 255)])


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('settings, right, wrong', [
    ({}, (1, 6, 8), [(6, 8, 3), (3, 6, 8), (1, 3, 4), (1, 8, 6), (6, 8)]),
    # A user's head may learn overlapping classes from one map per class.
    (dict(out_channels=4), (4, 6, 8), [(3, 6, 8), (6, 8, 4), (4, 3, 4)])])
def test_shapes_of_label_maps(split, settings, right, wrong):
    given = sample(0)
    given.ori_shape = (6, 8)
    batch = dict(inputs=[torch.zeros(3, 6, 8)], data_samples=[given])
    runner = runner_of(segmentor(Head(4, **settings)))
    start = getattr(SegLabelCheckHook(), f'before_{split}_iter')
    for shape in wrong:
        given.gt_sem_seg.data = torch.zeros(shape, dtype=torch.long)
        with pytest.raises(ValueError, match=r'gt/a.png must have one channel.*6, 8'):
            start(runner, 0, batch)
    given.gt_sem_seg.data = torch.zeros(right, dtype=torch.long)
    start(runner, 0, batch)
    if split != 'train':  # only the images are scaled
        start(runner, 0, dict(batch, inputs=[torch.zeros(3, 12, 16)]))


def check_maps(labels, count, classes=2, split='train', reduce_zero_label=False):
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
def test_a_missing_class_is_reported_once(labels, classes, reduce_zero_label):
    with pytest.warns(UserWarning, match='first 50 .* never occur') as found:
        check_maps(labels, 120, classes, reduce_zero_label=reduce_zero_label)
    assert len(found) == 1


@pytest.mark.parametrize('split, end', [
    ('train', 'after_train'), ('val', 'after_val_epoch'), ('test', 'after_test_epoch')])
def test_a_missing_class_in_few_label_maps(split, end):
    hook = check_maps((0, 255), 3, split=split)
    with pytest.warns(UserWarning, match=f'first 3 label maps of {split} '):
        getattr(hook, end)(None)


@pytest.mark.parametrize('labels, classes', [
    ((0, 1, 255), 2), ((0, ), 2), ((0, 3, 7, 255), 19), ((*range(18), 255), 19)])
def test_rare_classes_give_no_warning(labels, classes):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_maps(labels, 60, classes).after_train(None)


def test_labels_beyond_the_classes_of_the_data():
    """The metrics would ignore them; the hook may have an ignored label."""
    check(segmentor(Head(2)), [sample(0, 7)], hook=SegLabelCheckHook(7))
    check(segmentor(Head(2)), [])
    check(segmentor(Head(4)), [sample(3)], classes=2)
    with pytest.raises(ValueError, match=r'0 to 1.*got \[3\]'):
        check(segmentor(Head(4)), [sample(3)], 'val', classes=2)
