"""Labels, training and metrics of shipped configs on ADE20K, Pascal VOC and LIP."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import runs
from helpers.miniature_segmentation import (
    CLASSES,
    HEIGHT,
    WIDTH,
    write_ade20k_tree,
    write_lip_tree,
    write_voc_tree,
)
from helpers.shipped_configs import CONFIGS
from helpers.small_models import NECK
from mmengine.config import Config
from mmengine.registry import init_default_scope

# Folder, function that writes it, number of classes, images of train and val.
DATA = dict(
    ade20k=('data/ade/ADEChallengeData2016', write_ade20k_tree, 150, (4, 2)),
    voc=('data/VOCdevkit/VOC2012', write_voc_tree, 21, (4, 2)),
    lip=('data/LIP', write_lip_tree, 20, (3, 2)))
CONFIG_OF = {kind: str(CONFIGS / f'fpt/fcn_r101-d8_ufp-fpt_4xb4-{name}.py')
             for kind, name in dict(
                 ade20k='160k_ade20k-512x512', voc='40k_voc12aug-512x512',
                 lip='160k_lip-473x473').items()}


def options(kind):
    """Train a thin network for two iterations on crops of 65 pixels."""
    scale, crop = (WIDTH, HEIGHT), (65, 65)
    pipeline = {2: dict(scale=scale), 3: dict(crop_size=crop)}
    data = dict(pipeline=pipeline)
    if kind == 'voc':  # two data sets, which are joined
        pipeline[6] = dict(size=crop)
        data = dict(datasets={0: data, 1: data})
    settings = dict(
        model=dict(
            pretrained=None, data_preprocessor=dict(size=crop),
            backbone=dict(depth=18, base_channels=16, stem_channels=16,
                          strides=(1, 2, 1, 1)),
            neck=dict(NECK, embed_channels=32),
            decode_head=dict(in_channels=[32] * 4, channels=32),
            auxiliary_head=dict(in_channels=32, channels=16)),
        train_dataloader=dict(dataset=data),
        **{f'{split}_dataloader': dict(dataset=dict(pipeline={1: dict(scale=scale)}))
           for split in ('val', 'test')},
        train_cfg=dict(max_iters=2, val_interval=2), randomness=dict(seed=0),
        default_hooks=dict(checkpoint=dict(interval=2), logger=dict(interval=1)))
    return [*runs.options_of(settings), *runs.LOADERS]


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """Work in a folder with the data where the shipped configs expect them."""
    with runs.inside(tmp_path_factory.mktemp('project')):
        for root, write, *_ in DATA.values():
            write(root)
        yield


@pytest.mark.parametrize('kind', DATA)
def test_labels_are_the_classes_of_the_data_set(kind):
    """Labels start at 0, 255 is ignored; a perfect prediction has an mIoU of 100."""
    cfg = Config.fromfile(CONFIG_OF[kind])
    init_default_scope('mmseg')
    from mmseg.registry import DATASETS, METRICS
    train, val = (DATASETS.build(cfg[f'{split}_dataloader'].dataset)
                  for split in ('train', 'val'))
    metric = METRICS.build(cfg.val_evaluator)
    *_, count, images = DATA[kind]
    assert (len(train), len(val)) == images
    expected = {label - (kind == 'ade20k') for label in CLASSES[kind]}
    assert max(expected) < count == len(val.metainfo['classes'])
    metric.dataset_meta = val.metainfo
    for i in range(len(val)):
        sample = val[i]['data_samples']
        labels = sample.gt_sem_seg.data
        assert labels.shape == (1, HEIGHT, WIDTH)
        found = set(labels.unique().tolist())
        assert found - {255} == expected
        assert (255 in found) == (kind != 'lip')
        sample.pred_sem_seg = sample.gt_sem_seg.clone()
        sample.pred_sem_seg.data = torch.where(labels == 255, 3, labels)
        metric.process({}, [sample.to_dict()])
    assert metric.evaluate(len(val))['mIoU'] == 100
    labels = train[0]['data_samples'].gt_sem_seg.data
    assert set(labels.unique().tolist()) <= expected | {255}


@pytest.mark.parametrize('kind', DATA)
def test_testing_repeats_the_validation(kind):
    work = runs.train(CONFIG_OF[kind], kind, *options(kind))
    last, = runs.validations(work, 'mIoU')
    metrics = runs.run_test(CONFIG_OF[kind], work / 'iter_2.pth', f'{kind}-tested',
                            '--out', f'{kind}-maps', options=options(kind))
    assert metrics == last and 0 <= last['aAcc'] <= 100
    maps = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for path in Path(f'{kind}-maps').iterdir()]
    assert [one.shape for one in maps] == [(HEIGHT, WIDTH)] * DATA[kind][3][1]
    if kind == 'ade20k':  # the classes of ADE20K's server start at 1
        assert min(one.min() for one in maps) >= 1


def test_zero_that_is_no_class(tmp_path, monkeypatch):
    """A label above the 150 classes, as without reduce_zero_label."""
    monkeypatch.chdir(tmp_path)
    write_ade20k_tree(DATA['ade20k'][0])
    for path in Path(DATA['ade20k'][0], 'annotations/training').iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(labels == 150, 151, labels))
    with pytest.raises(ValueError, match=r'ADE_train.*from 0 to 149, .*got '
                       r'\[150\]\. .*reduce_zero_label=True'):
        runs.train(CONFIG_OF['ade20k'], 'work', *options('ade20k'))


def test_missing_part_of_joined_data(tmp_path, monkeypatch):
    """The message names the item of the list."""
    monkeypatch.chdir(tmp_path)
    write_voc_tree(DATA['voc'][0])
    (tmp_path / DATA['voc'][0] / 'SegmentationClassAug').rename('elsewhere')
    with pytest.raises(FileNotFoundError, match=(
            r'train_dataloader\.dataset\.datasets\.1\.data_prefix\.seg_map_path: '
            r'.*SegmentationClassAug is not there\. .*data_root=FOLDER')):
        runs.train(CONFIG_OF['voc'], 'work')
