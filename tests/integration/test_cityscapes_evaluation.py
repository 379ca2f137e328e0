"""Shipped configs over a tree of Cityscapes' layout: train, test, draw."""

import functools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import runs
from helpers.miniature_cityscapes import (
    HEIGHT,
    IMAGES,
    WIDTH,
    converter,
    stem,
    write_cityscapes_tree,
)
from helpers.shipped_configs import CONFIGS

from fpt_plugin.commands import test as test_command
from fpt_plugin.commands.common import launch_config
from fpt_plugin.engine.data_checks import check_data

FPT = str(CONFIGS / 'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py')
UFP = str(CONFIGS / 'fpt/fcn_r101-d8_ufp-fpt_4xb2-80k_cityscapes-769x769.py')
INSTANCES = str(CONFIGS / 'fpt/mask-rcnn_r50_fpt_1x_cityscapes.py')
SHAPE = f'({WIDTH},{HEIGHT})'
NETWORK = [
    'model.backbone.depth=18',
    'model.backbone.base_channels=16',
    'model.neck.in_channels=[16,32,64,128]',
    'model.neck.out_channels=32',
    'default_hooks.logger.interval=1',
    'randomness.seed=0',
]
SEGMENTOR = [
    *NETWORK, *runs.LOADERS,
    'model.pretrained=None',
    'model.backbone.stem_channels=16',
    'train_dataloader.dataset.pipeline.2.scale=' + SHAPE,
    'val_dataloader.dataset.pipeline.1.scale=' + SHAPE,
    'test_dataloader.dataset.pipeline.1.scale=' + SHAPE,
    'default_hooks.checkpoint.by_epoch=False',
]
SMALL = {
    FPT: [
        *SEGMENTOR,
        'model.data_preprocessor.size=(64,128)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,128)',
        'train_dataloader.batch_size=4',
        'model.decode_head.in_channels=[32,32,32,32]',
        'model.decode_head.channels=32',
        'optim_wrapper.optimizer.lr=0.02',
        'train_cfg.max_iters=48',
        'train_cfg.val_interval=24',
        'default_hooks.checkpoint.interval=24',
        'param_scheduler.0.end=48',
    ],
    # Windows that overlap, as on Cityscapes, and two iterations.
    UFP: [
        *SEGMENTOR,
        'model.backbone.strides=(1,2,1,1)',
        'model.data_preprocessor.size=(65,65)',
        'train_dataloader.dataset.pipeline.3.crop_size=(65,65)',
        'model.test_cfg.crop_size=(97,97)',
        'model.test_cfg.stride=(65,65)',
        'model.neck.embed_channels=32',
        'model.decode_head.in_channels=[32,32,32,32]',
        'model.decode_head.channels=32',
        'model.auxiliary_head.in_channels=32',
        'model.auxiliary_head.channels=16',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
    ],
    INSTANCES: [
        *NETWORK, *runs.LOADERS,
        'load_from=None',
        'model.backbone.frozen_stages=-1',
        'model.backbone.norm_eval=False',
        'model.backbone.init_cfg=None',
        'model.rpn_head.in_channels=32',
        'model.rpn_head.feat_channels=32',
        'model.roi_head.bbox_roi_extractor.out_channels=32',
        'model.roi_head.bbox_head.in_channels=32',
        'model.roi_head.bbox_head.fc_out_channels=128',
        'model.roi_head.mask_roi_extractor.out_channels=32',
        'model.roi_head.mask_head.in_channels=32',
        'model.roi_head.mask_head.conv_out_channels=32',
        'model.roi_head.mask_head.num_convs=1',
        'model.train_cfg.rpn_proposal.max_per_img=100',
        'model.test_cfg.rpn.max_per_img=100',
        'train_dataloader.batch_size=2',
        f'train_dataloader.dataset.dataset.pipeline.2.scale=[{SHAPE},{SHAPE}]',
        f'val_dataloader.dataset.pipeline.1.scale={SHAPE}',
        f'test_dataloader.dataset.pipeline.1.scale={SHAPE}',
        'optim_wrapper.clip_grad.max_norm=10',
        'optim_wrapper.optimizer.lr=0.02',
        'param_scheduler.0.end=5',
        'train_cfg.max_epochs=2',
        'train_cfg.val_interval=2',
    ],
}
VAL = [stem(*name) for name in IMAGES['val']]


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """A working folder with the data where the shipped configs expect them."""
    with runs.inside(tmp_path_factory.mktemp('project')):
        write_cityscapes_tree('data/cityscapes', instances=True)
        yield


@pytest.fixture(scope='module')
def trained(project):
    """The checkpoint of a config; trained when asked for."""

    @functools.cache
    def train(config):
        work = runs.train(config, Path(config).stem, *SMALL[config])
        return Path((work / 'last_checkpoint').read_text())

    return train


def run_test(config, checkpoint, name, *flags, more=()):
    return runs.run_test(
        config, checkpoint, name, *flags, options=[*SMALL[config], *more])


def train_ids(name):
    return cv2.imread(
        f'data/cityscapes/gtFine/val/{name}_gtFine_labelTrainIds.png',
        cv2.IMREAD_UNCHANGED)


def mean_iou(predictions):
    """Of predicted label maps by their images, in per cent."""
    intersections, unions = np.zeros(19), np.zeros(19)
    for name, predicted in predictions.items():
        truth = train_ids(name)
        for i in range(19):
            found = (predicted == i) & (truth != 255)
            intersections[i] += (found & (truth == i)).sum()
            unions[i] += (found | (truth == i)).sum()
    seen = unions > 0
    return np.mean(intersections[seen] / unions[seen]) * 100


# --------------------------------------------------------------- segmentation


def test_the_tree_is_cityscapes():
    """Numbers of Cityscapes' scripts: ids, ids for training, instances."""
    path = f'data/cityscapes/gtFine/val/{VAL[0]}_gtFine_'
    ids, instances = (cv2.imread(f'{path}{kind}.png', cv2.IMREAD_UNCHANGED)
                      for kind in ('labelIds', 'instanceIds'))
    trained = train_ids(VAL[0])
    assert trained.shape == ids.shape == (HEIGHT, WIDTH)
    pairs = dict(zip(ids.flatten().tolist(), trained.flatten().tolist()))
    assert pairs.items() >= {7: 0, 11: 2, 23: 10, 24: 11, 26: 13, 3: 255}.items()
    assert 26000 in instances and 26001 in instances


@pytest.fixture(scope='module')
def tested(trained):
    """The metrics of a trained Semantic FPN, with maps and pictures written."""
    # mmseg paints every fiftieth image by itself.
    return run_test(FPT, trained(FPT), 'tested', '--out', 'maps', '--show-dir',
                    'painted', more=['default_hooks.visualization.interval=1'])


def test_testing_finds_what_the_last_validation_found(trained, tested):
    first, last = runs.validations(trained(FPT).parent, 'mIoU')
    assert set(last) == {'aAcc', 'mIoU', 'mAcc'}
    assert tested == last != first
    # Better than one class for all that is seen.
    assert last['mIoU'] > 20 and last['aAcc'] > 60


def test_out_is_a_folder_of_label_maps(tested):
    """mmseg's meaning, which evaluates again to the same figure."""
    written = {
        name: cv2.imread(f'maps/{Path(name).name}_leftImg8bit.png',
                         cv2.IMREAD_UNCHANGED)
        for name in VAL
    }
    assert len(list(Path('maps').iterdir())) == len(VAL)
    assert {one.shape for one in written.values()} == {(HEIGHT, WIDTH)}
    assert tested['mIoU'] == pytest.approx(mean_iou(written), abs=0.01)


def test_show_dir_holds_a_picture_of_every_image(tested):
    pictures = sorted(Path('painted').rglob('*.png'))
    assert len(pictures) == len(VAL)
    # Labels on the left, predictions on the right.
    for picture in (cv2.imread(str(path)) for path in pictures):
        assert picture.shape[:2] == (HEIGHT, 2 * WIDTH)
        assert (picture[:, :WIDTH] != picture[:, WIDTH:]).any()


def test_tta_merges_scales_and_mirror_images(trained, tested):
    # Half, three quarters, ... of the image's size, and mirrored.
    merged = run_test(FPT, trained(FPT), 'tta', '--tta', '--out', 'tta-maps')
    assert merged['mIoU'] > 20 and merged != tested
    name = f'{Path(VAL[0]).name}_leftImg8bit.png'
    one, other = (cv2.imread(f'{folder}/{name}', cv2.IMREAD_UNCHANGED)
                  for folder in ('maps', 'tta-maps'))
    assert one.shape == other.shape
    assert 0.5 < (one == other).mean() < 1


def test_the_papers_segmentor_slides(trained):
    """Trains, validates in windows, is tested whole and in windows."""
    checkpoint = trained(UFP)
    slid = run_test(UFP, checkpoint, 'slid')
    assert runs.validations(checkpoint.parent, 'mIoU') == [slid]
    whole = run_test(
        UFP, checkpoint, 'whole', more=['model.test_cfg.mode=whole'])
    assert whole['aAcc'] != slid['aAcc']


# ------------------------------------------------------------------ instances


def test_instances_by_both_metrics(trained):
    """COCO's and Cityscapes', and what Cityscapes' server would be sent."""
    checkpoint = trained(INSTANCES)
    last, = runs.validations(checkpoint.parent)
    kinds = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    assert set(last) == {
        f'coco/{kind}_{ap}' for kind in ('bbox', 'segm') for ap in kinds
    } | {'cityscapes/mAP', 'cityscapes/AP@50'}
    assert last['coco/segm_mAP'] > 0 and last['cityscapes/AP@50'] > 0
    metrics = run_test(INSTANCES, checkpoint, 'instances', '--out', 'x.pkl')
    assert metrics == last
    assert Path('x.pkl').stat().st_size > 0
    sent = Path('work_dirs/cityscapes_metric/instance/results')
    for name in VAL:
        lines = (sent / f'{Path(name).name}_leftImg8bit_pred.txt').read_text()
        assert lines
        for line in lines.splitlines():
            mask, label, score = line.split()
            assert cv2.imread(str(sent / mask), 0).shape == (HEIGHT, WIDTH)
            assert int(label) in (24, 25, 26, 27, 28, 31, 32, 33)
            assert 0 <= float(score) <= 1


# ------------------------------------------------------------------ bad input


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A copy of the tree, to take something away from."""
    shutil.copytree('data', tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data/cityscapes'


def refused(config, error, match, *more):
    with pytest.raises(error, match=match):
        runs.train(config, 'work', *SMALL[config], *more)
    assert not list(Path('work').rglob('*.pth'))


def test_a_missing_folder_of_labels(broken):
    shutil.rmtree(broken / 'gtFine/train')
    refused(FPT, FileNotFoundError,
            r'train_dataloader\.dataset\.data_prefix\.seg_map_path: '
            r'data/cityscapes/gtFine/train is not there\. .*gtFine_trainvaltest')


def test_labels_that_were_not_converted(broken):
    for path in broken.rglob('*_labelTrainIds.png'):
        path.unlink()
    refused(FPT, FileNotFoundError,
            r'no file \*_gtFine_labelTrainIds\.png is in .*gtFine/train\. '
            r'.*python .*mmseg.*cityscapes\.py data/cityscapes')
    command = Path(converter('mmseg')['__file__'])
    assert command.is_file()


def test_a_missing_annotation_file(broken):
    shutil.rmtree(broken / 'annotations')
    refused(INSTANCES, FileNotFoundError,
            r'train_dataloader\.dataset\.dataset\.ann_file: .*_train\.json is '
            r'not there\. .*mmdet.*--out-dir data/cityscapes/annotations')


def test_missing_ground_truth_of_the_metric(broken):
    """Not after the whole validation."""
    shutil.rmtree(broken / 'gtFine')
    refused(INSTANCES, FileNotFoundError,
            r'val_evaluator\.seg_prefix: data/cityscapes/gtFine/val is not there')


@pytest.mark.parametrize('split', ['train', 'val'])
def test_labels_that_are_no_classes(broken, split):
    """Cityscapes' ids under the name of those for training."""
    for path in (broken / 'gtFine' / split).rglob('*_labelIds.png'):
        path.replace(str(path).replace('labelIds', 'labelTrainIds'))
    refused(FPT, ValueError,
            rf'{split}.*_gtFine_labelTrainIds\.png must hold labels from 0 to 18'
            r'.* or 255, .* got \[.*23.*\]\. .*converters/cityscapes\.py',
            'train_cfg.val_interval=1')


def test_images_alone_can_be_predicted(broken):
    """No labels are asked for where none are loaded."""
    shutil.rmtree(broken / 'gtFine')
    args = test_command.parser().parse_args([FPT, 'x.pth'])
    cfg = launch_config(args)
    with pytest.raises(FileNotFoundError, match='test_dataloader.*seg_map_path'):
        check_data(cfg, 'test')
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [
        step for step in pipeline if step.type != 'LoadAnnotations'
    ]
    check_data(cfg, 'test')


def test_remote_data_are_the_hosts_business(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = launch_config(test_command.parser().parse_args([FPT, 'x.pth']))
    cfg.train_dataloader.dataset.backend_args = dict(backend='petrel')
    cfg.val_dataloader.dataset.data_root = 's3://bucket/cityscapes/'
    check_data(cfg, 'train', 'val')


# ----------------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.parametrize(('config', 'batch'), [(FPT, 2), (UFP, 1)])
def test_two_iterations_at_the_true_crop(config, batch, project):
    """Batches of one for the 769x769 crops of R101: for time, not for memory."""
    losses = runs.two_losses(config, f'{Path(config).stem}-true',
                             f'train_dataloader.batch_size={batch}')
    assert len(losses) == 2 and torch.tensor(losses).isfinite().all()
