"""ADE20K, Pascal VOC and LIP by the shipped configs: labels, training, figures."""

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
from mmengine.config import Config
from mmengine.registry import init_default_scope

DATA = dict(
    ade20k=('data/ade/ADEChallengeData2016', write_ade20k_tree, 150),
    voc=('data/VOCdevkit/VOC2012', write_voc_tree, 21),
    lip=('data/LIP', write_lip_tree, 20))
IMAGES = dict(ade20k=(4, 2), voc=(4, 2), lip=(3, 2))  # voc: train and aug
SEM_FPN = 'sem-fpn_r50_fpt_4xb4-160k_ade20k-512x512'
CONFIG_OF = dict(
    ade20k='fcn_r101-d8_ufp-fpt_4xb4-160k_ade20k-512x512',
    voc='fcn_r101-d8_ufp-fpt_4xb4-40k_voc12aug-512x512',
    lip='fcn_r101-d8_ufp-fpt_4xb4-160k_lip-473x473')
ITERATIONS = [
    'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1',
    'randomness.seed=0'
]
# Images of at most 128 pixels, crops of 65, and a thin network.
SMALL = [
    'model.pretrained=None',
    'model.data_preprocessor.size=(65,65)',
    'model.backbone.depth=18',
    'model.backbone.base_channels=16',
    'model.backbone.stem_channels=16',
    'model.backbone.strides=(1,2,1,1)',
    'model.neck.in_channels=[16,32,64,128]',
    'model.neck.out_channels=32',
    'model.neck.embed_channels=32',
    'model.decode_head.in_channels=[32,32,32,32]',
    'model.decode_head.channels=32',
    'model.auxiliary_head.in_channels=32',
    'model.auxiliary_head.channels=16',
    'val_dataloader.dataset.pipeline.1.scale=(128,96)',
    'test_dataloader.dataset.pipeline.1.scale=(128,96)',
]


def config_path(name):
    return str(CONFIGS / f'fpt/{name}.py')


def small_pipelines(kind):
    """Settings of each train pipeline: scale and crop."""
    folders = [f'datasets.{i}.' for i in (0, 1)] if kind == 'voc' else ['']
    for folder in folders:
        pipeline = f'train_dataloader.dataset.{folder}pipeline'
        yield f'{pipeline}.2.scale=(128,96)'
        yield f'{pipeline}.3.crop_size=(65,65)'
        if kind == 'voc':
            yield f'{pipeline}.6.size=(65,65)'


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """A working folder with the data where the shipped configs expect them."""
    with runs.inside(tmp_path_factory.mktemp('project')):
        for root, write, _ in DATA.values():
            write(root)
        yield


def datasets(kind):
    """The two datasets of a config, and the metric."""
    cfg = Config.fromfile(config_path(CONFIG_OF[kind]))
    init_default_scope('mmseg')
    from mmseg.registry import DATASETS, METRICS
    return (*(DATASETS.build(cfg[f'{split}_dataloader'].dataset)
              for split in ('train', 'val')), METRICS.build(cfg.val_evaluator))


@pytest.mark.parametrize('kind', DATA)
def test_labels_are_the_data_sets_classes(kind):
    """From 0, 255 where nothing counts; a perfect prediction has 100."""
    train, val, metric = datasets(kind)
    assert (len(train), len(val)) == IMAGES[kind]
    shift = int(kind == 'ade20k')
    expected = {label - shift for label in CLASSES[kind]}
    count = DATA[kind][2]
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
    assert {255} >= set(train[0]['data_samples'].gt_sem_seg.data.unique(
    ).tolist()) - expected


@pytest.mark.parametrize('kind', DATA)
def test_trains_and_tests(kind):
    """Two iterations, a validation, the same figures again, label maps."""
    config = config_path(CONFIG_OF[kind])
    options = [*SMALL, *runs.LOADERS, *ITERATIONS, *small_pipelines(kind)]
    work = runs.train(config, kind, *options)
    last, = runs.validations(work, 'mIoU')
    metrics = runs.run_test(
        config, work / 'iter_2.pth', f'{kind}-tested', '--out', f'{kind}-maps',
        options=options)
    assert metrics == last and 0 <= last['aAcc'] <= 100
    maps = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for path in Path(f'{kind}-maps').iterdir()]
    assert [one.shape for one in maps] == [(HEIGHT, WIDTH)] * IMAGES[kind][1]
    if kind == 'ade20k':  # the numbers of ADE20K's server begin at 1
        assert min(one.min() for one in maps) >= 1


def test_a_zero_that_is_no_class(tmp_path, monkeypatch):
    """ADE20K's numbers without reduce_zero_label: the last class is too many."""
    monkeypatch.chdir(tmp_path)
    write_ade20k_tree(DATA['ade20k'][0])
    path = next(Path(DATA['ade20k'][0], 'annotations/training').iterdir())
    for other in path.parent.iterdir():
        labels = cv2.imread(str(other), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(other), np.where(labels == 150, 151, labels))
    with pytest.raises(ValueError, match=r'ADE_train.*from 0 to 149, .*got '
                       r'\[150\]\. .*reduce_zero_label=True'):
        runs.train(
            config_path(CONFIG_OF['ade20k']), 'work', *SMALL, *runs.LOADERS,
            *ITERATIONS, *small_pipelines('ade20k'))


def test_a_missing_part_of_joined_data(tmp_path, monkeypatch):
    """The key leads through the list."""
    monkeypatch.chdir(tmp_path)
    write_voc_tree(DATA['voc'][0])
    (tmp_path / DATA['voc'][0] / 'SegmentationClassAug').rename('elsewhere')
    with pytest.raises(FileNotFoundError, match=(
            r'train_dataloader\.dataset\.datasets\.1\.data_prefix\.seg_map_path: '
            r'.*SegmentationClassAug is not there\. .*data_root=FOLDER')):
        runs.train(config_path(CONFIG_OF['voc']), 'work')


@pytest.mark.slow
@pytest.mark.parametrize('name', [SEM_FPN, CONFIG_OF['voc'], CONFIG_OF['lip']])
def test_two_iterations_at_the_true_crop(name, project):
    """Crops of 512 and 473. Two images a batch, four in the configs: for time."""
    batch = 2 if name == SEM_FPN else 1
    losses = runs.two_losses(config_path(name), f'{name}-true',
                             f'train_dataloader.batch_size={batch}')
    assert len(losses) == 2 and torch.tensor(losses).isfinite().all()
