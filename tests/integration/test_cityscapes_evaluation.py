"""Train and test shipped configs on a miniature Cityscapes; refuse broken data."""

import functools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
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
from helpers.small_models import NECK, two_stage

from fpt_plugin.commands import test as test_command
from fpt_plugin.commands.common import launch_config
from fpt_plugin.engine.data_checks import check_data

FPT = str(CONFIGS / 'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py')
UFP = str(CONFIGS / 'fpt/fcn_r101-d8_ufp-fpt_4xb2-80k_cityscapes-769x769.py')
INSTANCES = str(CONFIGS / 'fpt/mask-rcnn_r50_fpt_1x_cityscapes.py')
BACKBONE = dict(depth=18, base_channels=16)
HEAD = dict(in_channels=[32] * 4, channels=32)


def pipelines(**train):
    """Return the settings of the data: image size, and the training pipeline."""
    scale = dict(scale=(WIDTH, HEIGHT))
    return dict(train_dataloader=train, **{
        f'{split}_dataloader': dict(dataset=dict(pipeline={1: scale}))
        for split in ('val', 'test')})


def segmentor(crop, iterations, batch_size, model):
    return dict(
        model=dict(model, pretrained=None, data_preprocessor=dict(size=crop)),
        train_cfg=dict(max_iters=iterations, val_interval=max(iterations // 2, 2)),
        default_hooks=dict(logger=dict(interval=1), checkpoint=dict(
            by_epoch=False, interval=max(iterations // 2, 2))),
        **pipelines(batch_size=batch_size, dataset=dict(pipeline={
            2: dict(scale=(WIDTH, HEIGHT)), 3: dict(crop_size=crop)})))


SMALL = {
    FPT: dict(
        segmentor((64, 128), 48, 4, dict(
            backbone=dict(BACKBONE, stem_channels=16), neck=NECK, decode_head=HEAD)),
        optim_wrapper=dict(optimizer=dict(lr=0.02)), param_scheduler={0: dict(end=48)}),
    # Overlapping windows, as on Cityscapes, and two iterations.
    UFP: segmentor((65, 65), 2, 2, dict(
        backbone=dict(BACKBONE, stem_channels=16, strides=(1, 2, 1, 1)),
        neck=dict(NECK, embed_channels=32), decode_head=HEAD,
        auxiliary_head=dict(in_channels=32, channels=16),
        test_cfg=dict(crop_size=(97, 97), stride=(65, 65)))),
    INSTANCES: dict(
        load_from=None,
        model=dict(two_stage(masks=True), backbone=dict(
            BACKBONE, frozen_stages=-1, norm_eval=False, init_cfg=None), neck=NECK),
        optim_wrapper=dict(clip_grad=dict(max_norm=10), optimizer=dict(lr=0.02)),
        param_scheduler={0: dict(end=5)},
        train_cfg=dict(max_epochs=2, val_interval=2),
        default_hooks=dict(logger=dict(interval=1)),
        **pipelines(batch_size=2, dataset=dict(dataset=dict(pipeline={
            2: dict(scale=[(WIDTH, HEIGHT)] * 2)})))),
}
VAL = [stem(*name) for name in IMAGES['val']]


def options(config):
    return [*runs.options_of(SMALL[config]), *runs.LOADERS, 'randomness.seed=0']


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """Work in a folder with the data where the shipped configs expect them."""
    with runs.inside(tmp_path_factory.mktemp('project')):
        write_cityscapes_tree('data/cityscapes', instances=True)
        yield


@pytest.fixture(scope='module')
def trained(project):
    """Train a config once; return its last checkpoint."""

    @functools.cache
    def train(config):
        work = runs.train(config, Path(config).stem, *options(config))
        return Path((work / 'last_checkpoint').read_text())

    return train


def run_test(config, checkpoint, name, *flags, more=()):
    return runs.run_test(config, checkpoint, name, *flags,
                         options=[*options(config), *more])


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def train_ids(name):
    return read(f'data/cityscapes/gtFine/val/{name}_gtFine_labelTrainIds.png')


def read_maps(folder):
    """Read predicted label maps by the names of their images."""
    return {name: read(f'{folder}/{Path(name).name}_leftImg8bit.png') for name in VAL}


def mean_iou(predictions):
    """Compute the mIoU of label maps, in per cent."""
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


@pytest.fixture(scope='module')
def tested(trained):
    """Return the metrics of a Semantic FPN; write label maps and pictures."""
    # By default mmseg paints every 50th image.
    return run_test(FPT, trained(FPT), 'tested', '--out', 'maps', '--show-dir',
                    'painted', more=['default_hooks.visualization.interval=1'])


def test_testing_repeats_the_last_validation(trained, tested):
    first, last = runs.validations(trained(FPT).parent, 'mIoU')
    assert set(last) == {'aAcc', 'mIoU', 'mAcc'}
    assert tested == last != first
    # A prediction of one class everywhere scores less.
    assert last['mIoU'] > 20 and last['aAcc'] > 60


def test_out_and_show_dir_hold_every_image(tested):
    """The label maps give the same mIoU again."""
    maps = read_maps('maps')
    assert len(list(Path('maps').iterdir())) == len(VAL)
    assert {one.shape for one in maps.values()} == {(HEIGHT, WIDTH)}
    assert tested['mIoU'] == pytest.approx(mean_iou(maps), abs=0.01)
    pictures = sorted(Path('painted').rglob('*.png'))
    assert len(pictures) == len(VAL)
    for picture in map(read, pictures):  # labels left, predictions right
        assert picture.shape[:2] == (HEIGHT, 2 * WIDTH)
        assert (picture[:, :WIDTH] != picture[:, WIDTH:]).any()


def test_tta_merges_scales_and_mirror_images(trained, tested):
    merged = run_test(FPT, trained(FPT), 'tta', '--tta', '--out', 'tta-maps')
    assert merged['mIoU'] > 20 and merged != tested
    one, other = (read_maps(folder)[VAL[0]] for folder in ('maps', 'tta-maps'))
    assert 0.5 < (one == other).mean() < 1


def test_papers_segmentor_slides(trained):
    """Validate in windows; test in windows and whole."""
    checkpoint = trained(UFP)
    slid = run_test(UFP, checkpoint, 'slid')
    assert runs.validations(checkpoint.parent, 'mIoU') == [slid]
    whole = run_test(UFP, checkpoint, 'whole', more=['model.test_cfg.mode=whole'])
    assert whole['aAcc'] != slid['aAcc']


# ------------------------------------------------------------------ instances


def test_instances_by_both_metrics(trained):
    """Check COCO's metric, Cityscapes' metric and the files for its server."""
    checkpoint = trained(INSTANCES)
    last, = runs.validations(checkpoint.parent)
    kinds = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    assert set(last) == {'cityscapes/mAP', 'cityscapes/AP@50'} | {
        f'coco/{kind}_{ap}' for kind in ('bbox', 'segm') for ap in kinds}
    assert last['coco/segm_mAP'] > 0 and last['cityscapes/AP@50'] > 0
    assert run_test(INSTANCES, checkpoint, 'instances', '--out', 'x.pkl') == last
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
    """Work in a copy of the tree, which a test damages."""
    shutil.copytree('data', tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data/cityscapes'


def assert_refused(config, error, match, *more):
    with pytest.raises(error, match=match):
        runs.train(config, 'work', *options(config), *more)
    assert not list(Path('work').rglob('*.pth'))


@pytest.mark.parametrize('config, removed, match', [
    (FPT, 'gtFine/train',
     r'train_dataloader\.dataset\.data_prefix\.seg_map_path: '
     r'data/cityscapes/gtFine/train is not there\. .*gtFine_trainvaltest'),
    (INSTANCES, 'annotations',
     r'train_dataloader\.dataset\.dataset\.ann_file: .*_train\.json is '
     r'not there\. .*mmdet.*--out-dir data/cityscapes/annotations'),
    (INSTANCES, 'gtFine',
     r'val_evaluator\.seg_prefix: data/cityscapes/gtFine/val is not there')])
def test_missing_data_are_named_before_training(broken, config, removed, match):
    shutil.rmtree(broken / removed)
    assert_refused(config, FileNotFoundError, match)


def test_labels_that_were_not_converted(broken):
    for path in broken.rglob('*_labelTrainIds.png'):
        path.unlink()
    assert_refused(FPT, FileNotFoundError,
                   r'no file \*_gtFine_labelTrainIds\.png is in .*gtFine/train\. '
                   r'.*python .*mmseg.*cityscapes\.py data/cityscapes')
    assert Path(converter('mmseg')['__file__']).is_file()


@pytest.mark.parametrize('split', ['train', 'val'])
def test_labels_that_are_no_classes(broken, split):
    """The ids of Cityscapes under the name of the ids for training."""
    for path in (broken / 'gtFine' / split).rglob('*_labelIds.png'):
        path.replace(str(path).replace('labelIds', 'labelTrainIds'))
    assert_refused(FPT, ValueError,
                   rf'{split}.*_gtFine_labelTrainIds\.png must hold labels from 0 to 18'
                   r'.* or 255, .* got \[.*23.*\]\. .*converters/cityscapes\.py',
                   'train_cfg.val_interval=1')


def test_images_without_labels_can_be_predicted(broken):
    """Labels are checked only where the pipeline loads them."""
    shutil.rmtree(broken / 'gtFine')
    cfg = launch_config(test_command.parser().parse_args([FPT, 'x.pth']))
    with pytest.raises(FileNotFoundError, match='test_dataloader.*seg_map_path'):
        check_data(cfg, 'test')
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = [x for x in dataset.pipeline if x.type != 'LoadAnnotations']
    check_data(cfg, 'test')


def test_remote_data_are_not_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = launch_config(test_command.parser().parse_args([FPT, 'x.pth']))
    cfg.train_dataloader.dataset.backend_args = dict(backend='petrel')
    cfg.val_dataloader.dataset.data_root = 's3://bucket/cityscapes/'
    check_data(cfg, 'train', 'val')
