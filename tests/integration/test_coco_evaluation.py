"""Shipped configs over a tree of COCO's layout: train, resume, test, draw."""

import contextlib
import functools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from helpers import runs
from helpers.miniature_coco import IMAGES, evaluate, file_name, shipped, write_coco_tree
from helpers.runs import validations
from pycocotools import mask as coco_mask

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 12  # of the shipped schedule
# The size of the images in the network.
SCALE = 'scale=(128,112)'
# What a user would write behind --cfg-options to make the detectors small.
SMALL = [
    'model.backbone.depth=18',
    'model.backbone.base_channels=16',
    'model.backbone.frozen_stages=-1',
    'model.backbone.norm_eval=False',
    'model.backbone.init_cfg=None',
    'model.neck.in_channels=[16,32,64,128]',
    'model.neck.out_channels=32',
    f'train_dataloader.dataset.pipeline.2.{SCALE}',
    f'val_dataloader.dataset.pipeline.1.{SCALE}',
    f'test_dataloader.dataset.pipeline.1.{SCALE}',
    *runs.LOADERS,
    'optim_wrapper.clip_grad.max_norm=10',
    'param_scheduler.0.end=5',
    'default_hooks.logger.interval=1',
    'randomness.seed=0',
]
TWO_STAGE = [
    'model.rpn_head.in_channels=32',
    'model.rpn_head.feat_channels=32',
    'model.roi_head.bbox_roi_extractor.out_channels=32',
    'model.roi_head.bbox_head.in_channels=32',
    'model.roi_head.bbox_head.fc_out_channels=128',
    'model.train_cfg.rpn_proposal.max_per_img=100',
    'model.test_cfg.rpn.max_per_img=100',
]
DETECTORS = {
    'faster-rcnn':
    TWO_STAGE,
    'mask-rcnn':
    TWO_STAGE + [
        'model.roi_head.mask_roi_extractor.out_channels=32',
        'model.roi_head.mask_head.in_channels=32',
        'model.roi_head.mask_head.conv_out_channels=32',
        'model.roi_head.mask_head.num_convs=1',
    ],
    'retinanet': [
        'model.bbox_head.in_channels=32',
        'model.bbox_head.feat_channels=32',
        'model.bbox_head.stacked_convs=1',
    ],
}
VAL_IDS = list(IMAGES['val2017'])


def options(name, *more):
    return ['--cfg-options', *SMALL, *DETECTORS[name], *more]


def train(name, work_dir, *more):
    return runs.train(shipped(name), work_dir, *SMALL, *DETECTORS[name], *more)


def run_test(name, checkpoint, work_dir, *flags, more=()):
    return runs.run_test(
        shipped(name), checkpoint, work_dir, *flags,
        options=[*SMALL, *DETECTORS[name], *more])


def predictions(path):
    return pickle.loads(Path(path).read_bytes())


# ---------------------------------------------------------------- fixtures


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    """A working folder with the data where the shipped configs expect them."""
    with runs.inside(tmp_path_factory.mktemp('project')):
        write_coco_tree('data/coco')
        yield


@pytest.fixture(scope='module')
def trained(project):
    """The work folder of a detector by its name; trained when asked for."""
    return functools.cache(lambda name: train(
        name, name, f'train_cfg.val_interval={EPOCHS // 2}',
        f'default_hooks.checkpoint.interval={EPOCHS // 2}'))


@pytest.fixture(scope='module')
def tested(trained):
    """The metrics of a trained detector; writes predictions and pictures too."""
    return functools.cache(lambda name: run_test(
        name, trained(name) / f'epoch_{EPOCHS}.pth', f'{name}-tested', '--out',
        f'{name}.pkl', '--show-dir', 'painted'))


# ------------------------------------------------- trained, tested, painted


@pytest.mark.parametrize('name', DETECTORS)
def test_testing_finds_what_the_last_validation_found(name, trained, tested):
    kinds = ['bbox', 'segm'] if name == 'mask-rcnn' else ['bbox']
    last = validations(trained(name))[-1]
    assert set(last) == {
        f'coco/{kind}_mAP{part}'
        for kind in kinds for part in ('', '_50', '_75', '_s', '_m', '_l')
    }
    # Equal zeros would say nothing.
    assert all(last[f'coco/{kind}_mAP'] > 0 for kind in kinds)
    assert tested(name) == last
    dumped, = Path(f'{name}-tested').glob('*/*.json')
    assert last.items() <= json.loads(dumped.read_text()).items()


def test_each_checkpoint_has_its_own_ap(trained):
    """The comparison above can fail."""
    first, last = validations(trained('retinanet'))
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
        assert one['ori_shape'] == size
        assert 'gt_instances' not in one
        instances = one['pred_instances']
        assert ('masks' in instances) == (name == 'mask-rcnn')
        for mask in instances.get('masks', ()):
            assert isinstance(mask['counts'], bytes)
            assert mask['size'] == list(size)
            assert coco_mask.decode(mask).shape == size
    assert evaluate(name, found)[1] == metrics


@pytest.mark.parametrize('name', DETECTORS)
def test_show_dir_holds_a_picture_of_every_image(name, tested):
    tested(name)
    pictures = Path(f'{name}-tested').glob('*/painted/*')
    pictures = {path.name: cv2.imread(str(path)) for path in pictures}
    assert set(pictures) == {file_name(i) for i in VAL_IDS}
    drawn = []
    for one in predictions(f'{name}.pkl'):
        picture = pictures[file_name(one['img_id'])]
        photograph = cv2.imread(f'data/coco/val2017/{file_name(one["img_id"])}')
        # Annotations on the left, predictions on the right.
        height, width = photograph.shape[:2]
        assert picture.shape == (height, 2 * width, 3)
        # The rest differs by what the encoding of JPEG loses.
        truth, found = (
            cv2.absdiff(half, photograph).max() > 100
            for half in (picture[:, :width], picture[:, width:]))
        assert truth == (IMAGES['val2017'][one['img_id']][2] > 0)
        assert found == bool((one['pred_instances']['scores'] > 0.3).any())
        drawn.append(found)
    assert any(drawn)


# Retina's config has a test-time augmentation of its own, of three sizes.
TTA_SIZES = [
    f'tta_pipeline.1.transforms.0.{i}.scale=({32 * n},{28 * n})'
    for i, n in enumerate((4, 3, 5))
]


@pytest.mark.parametrize(('name', 'more'), [('faster-rcnn', []),
                                            ('retinanet', TTA_SIZES)])
def test_tta_merges_views_of_the_trained_detector(name, more, trained, tested):
    tested(name)
    checkpoint = trained(name) / f'epoch_{EPOCHS}.pth'
    with contextlib.nullcontext() if more else pytest.warns(
            UserWarning, match='no tta_'):
        metrics = run_test(
            name, checkpoint, f'{name}-tta', '--tta', '--out', f'{name}-tta.pkl',
            more=more)
    assert metrics['coco/bbox_mAP'] > 0
    plain, merged = predictions(f'{name}.pkl'), predictions(f'{name}-tta.pkl')
    assert [one['img_id'] for one in merged] == VAL_IDS
    # Boxes of the plain view are there, and boxes of other views.
    kept, new = 0, 0
    for one, other in zip(plain, merged):
        gaps = torch.cdist(other['pred_instances']['bboxes'],
                           one['pred_instances']['bboxes'])
        same = (gaps < 1e-2).any(1)
        kept, new = kept + int(same.sum()), new + int((~same).sum())
    assert kept > 0 and new > 0


# ------------------------------------------------------------------- slow


def tool(name, *args):
    """The command of a tool, and how to start it."""
    environ = dict(os.environ, PYTHONUNBUFFERED='1')
    environ['PYTHONPATH'] = os.pathsep.join(
        filter(None, [str(ROOT), environ.get('PYTHONPATH')]))
    return [sys.executable, str(ROOT / 'tools' / name), *args], dict(
        env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_killed_training_resumes(trained):
    name, work = 'retinanet', Path('killed')
    # A trained detector keeps the AP above zero; with one image a batch the
    # second epoch is long enough to be killed in.
    command, settings = tool('train.py', shipped(name), '--work-dir', 'killed',
                             *options(
                                 name, 'train_cfg.max_epochs=2',
                                 'train_dataloader.batch_size=1',
                                 'optim_wrapper.optimizer.lr=0.002',
                                 f'load_from={trained(name)}/epoch_{EPOCHS}.pth'))
    images = len(IMAGES['train2017']) - 1
    second = re.compile(rf'Epoch\(train\)\s+\[2\]\[1/{images}\]')
    log = []
    with subprocess.Popen(command, **settings) as process:
        for line in process.stdout:
            log.append(line)
            if second.search(line):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL, ''.join(log[-30:])
    assert Path((work / 'last_checkpoint').read_text()).name == 'epoch_1.pth'
    assert not (work / 'epoch_2.pth').exists()
    before, = validations(work)
    # Had the signal come while the next checkpoint was being written:
    whole = (work / 'epoch_1.pth').read_bytes()
    (work / 'epoch_2.pth').write_bytes(whole[:len(whole) // 2])

    resumed = subprocess.run([*command, '--resume'], timeout=300, **settings)
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert f'resumed epoch: 1, iter: {images}' in resumed.stdout
    assert not re.search(r'Epoch\(train\)\s+\[1\]', resumed.stdout)
    last = (work / 'last_checkpoint').read_text()
    assert Path(last).resolve() == (work / 'epoch_2.pth').resolve()
    meta = torch.load(last, weights_only=True)['meta']
    assert (meta['epoch'], meta['iter']) == (2, 2 * images)

    assert validations(work)[:-1] == [before]
    after = validations(work)[-1]
    assert after['coco/bbox_mAP'] > 0
    command, settings = tool('test.py', shipped(name), last, '--work-dir',
                             'killed-tested', *options(name))
    tested = subprocess.run(command, timeout=300, **settings)
    assert tested.returncode == 0, tested.stdout[-3000:]
    dumped, = Path('killed-tested').glob('*/*.json')
    assert after.items() <= json.loads(dumped.read_text()).items()


@pytest.mark.slow
def test_a_longer_training_finds_most_objects(project):
    work = train('mask-rcnn', 'longer', 'train_cfg.max_epochs=36',
                 'train_cfg.val_interval=36', 'param_scheduler.1.end=36',
                 'param_scheduler.1.milestones=[27,33]')
    metrics, = validations(work)
    assert metrics['coco/bbox_mAP_50'] > 0.6
    assert metrics['coco/segm_mAP_50'] > 0.6
