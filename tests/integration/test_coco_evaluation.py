"""Train and test shipped configs on a miniature COCO: metrics, files, pictures."""

import contextlib
import functools
import json
import pickle
from pathlib import Path

import cv2
import pytest
import torch
from helpers import runs
from helpers.miniature_coco import IMAGES, evaluate, file_name, shipped, write_coco_tree
from helpers.small_models import BACKBONE, NECK, two_stage
from pycocotools import mask as coco_mask

EPOCHS = 12  # of the shipped schedule
DETECTORS = {
    'faster-rcnn': two_stage(),
    'mask-rcnn': two_stage(masks=True),
    'retinanet': dict(
        bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1)),
}
VAL_IDS = list(IMAGES['val2017'])


def options(name, *more):
    """Make a detector and its images small, with --cfg-options."""
    steps = dict(train=2, val=1, test=1)  # the index of Resize in each pipeline
    settings = dict(
        model=dict(DETECTORS[name], neck=NECK, backbone=dict(
            BACKBONE, frozen_stages=-1, norm_eval=False)),
        optim_wrapper=dict(clip_grad=dict(max_norm=10)),
        param_scheduler={0: dict(end=5)},
        default_hooks=dict(logger=dict(interval=1)), randomness=dict(seed=0),
        **{f'{split}_dataloader': dict(dataset=dict(pipeline={
            step: dict(scale=(128, 112))})) for split, step in steps.items()})
    return [*runs.options_of(settings), *runs.LOADERS, *more]


def train(name, work_dir, *more):
    return runs.train(shipped(name), work_dir, *options(name, *more))


def run_test(name, checkpoint, work_dir, *flags, more=()):
    return runs.run_test(shipped(name), checkpoint, work_dir, *flags,
                         options=options(name, *more))


def predictions(path):
    return pickle.loads(Path(path).read_bytes())


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """Work in a folder with the data where the shipped configs expect them."""
    with runs.inside(tmp_path_factory.mktemp('project')):
        write_coco_tree('data/coco')
        yield


@pytest.fixture(scope='module')
def trained(project):
    """Train a detector once; return its work folder."""
    return functools.cache(lambda name: train(
        name, name, f'train_cfg.val_interval={EPOCHS // 2}',
        f'default_hooks.checkpoint.interval={EPOCHS // 2}'))


@pytest.fixture(scope='module')
def tested(trained):
    """Test a detector once, with predictions and pictures; return the metrics."""
    return functools.cache(lambda name: run_test(
        name, trained(name) / f'epoch_{EPOCHS}.pth', f'{name}-tested', '--out',
        f'{name}.pkl', '--show-dir', 'painted'))


@pytest.mark.parametrize('name', DETECTORS)
def test_testing_repeats_the_last_validation(name, trained, tested):
    kinds = ['bbox', 'segm'] if name == 'mask-rcnn' else ['bbox']
    last = runs.validations(trained(name))[-1]
    assert set(last) == {f'coco/{kind}_mAP{part}' for kind in kinds
                         for part in ('', '_50', '_75', '_s', '_m', '_l')}
    # Zeros would be equal in any case.
    assert all(last[f'coco/{kind}_mAP'] > 0 for kind in kinds)
    assert tested(name) == last
    dumped, = Path(f'{name}-tested').glob('*/*.json')
    assert last.items() <= json.loads(dumped.read_text()).items()


def test_each_checkpoint_has_its_own_ap(trained):
    """Show that the comparison above can fail."""
    first, last = runs.validations(trained('retinanet'))
    checkpoint = trained('retinanet') / f'epoch_{EPOCHS // 2}.pth'
    assert run_test('retinanet', checkpoint, 'half-trained') == first != last


@pytest.mark.parametrize('name', DETECTORS)
def test_out_holds_every_image_and_repeats_the_evaluation(name, tested):
    metrics = tested(name)
    found = predictions(f'{name}.pkl')
    # The image without annotations is among them.
    assert [one['img_id'] for one in found] == VAL_IDS
    assert any(len(one['pred_instances']['scores']) for one in found)
    for one in found:
        size = IMAGES['val2017'][one['img_id']][:2]
        assert one['ori_shape'] == size and 'gt_instances' not in one
        instances = one['pred_instances']
        assert ('masks' in instances) == (name == 'mask-rcnn')
        for mask in instances.get('masks', ()):
            assert isinstance(mask['counts'], bytes)
            assert coco_mask.decode(mask).shape == tuple(mask['size']) == size
    assert evaluate(name, found) == metrics


@pytest.mark.parametrize('name', DETECTORS)
def test_show_dir_holds_a_picture_of_every_image(name, tested):
    """Annotations are on the left, predictions on the right."""
    tested(name)
    pictures = {path.name: cv2.imread(str(path))
                for path in Path(f'{name}-tested').glob('*/painted/*')}
    assert set(pictures) == {file_name(i) for i in VAL_IDS}
    for image_id in VAL_IDS:
        height, width = IMAGES['val2017'][image_id][:2]
        assert pictures[file_name(image_id)].shape == (height, 2 * width, 3)


# The config of RetinaNet has a test-time augmentation of its own, of three sizes.
TTA_SIZES = [f'tta_pipeline.1.transforms.0.{i}.scale=({32 * n},{28 * n})'
             for i, n in enumerate((4, 3, 5))]


@pytest.mark.parametrize('name, more', [('faster-rcnn', []), ('retinanet', TTA_SIZES)])
def test_tta_merges_views_of_the_trained_detector(name, more, trained, tested):
    tested(name)
    with contextlib.nullcontext() if more else pytest.warns(
            UserWarning, match='no tta_'):
        metrics = run_test(name, trained(name) / f'epoch_{EPOCHS}.pth', f'{name}-tta',
                           '--tta', '--out', f'{name}-tta.pkl', more=more)
    assert metrics['coco/bbox_mAP'] > 0
    plain, merged = predictions(f'{name}.pkl'), predictions(f'{name}-tta.pkl')
    assert [one['img_id'] for one in merged] == VAL_IDS
    # The result has boxes of the plain view and boxes of other views.
    same = torch.cat([
        (torch.cdist(other['pred_instances']['bboxes'],
                     one['pred_instances']['bboxes']) < 1e-2).any(1)
        for one, other in zip(plain, merged)])
    assert same.any() and not same.all()


@pytest.mark.slow
def test_longer_training_finds_most_objects(project):
    work = train('mask-rcnn', 'longer', 'train_cfg.max_epochs=36',
                 'train_cfg.val_interval=36', 'param_scheduler.1.end=36',
                 'param_scheduler.1.milestones=[27,33]')
    metrics, = runs.validations(work)
    assert metrics['coco/bbox_mAP_50'] > 0.6
    assert metrics['coco/segm_mAP_50'] > 0.6
