"""Trainings that are killed, full disks, and files that are broken."""

import contextlib
import json
import random
import re
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import runs
from helpers.square_detector import DETECTOR
from helpers.synthetic_data import write_coco_squares
from helpers.tool_processes import Tools
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fpt_plugin.openmmlab.named_samples import name_broken_samples

EPOCHS = 3
# What a training draws: mirror images, by chance.
CONFIG = DETECTOR + f"""
train_dataloader['dataset']['pipeline'].insert(
    2, dict(type='RandomFlip', prob=0.5))
custom_hooks = [dict(type='fpt_plugin.ReseedHook')]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs={EPOCHS})
val_cfg = val_dataloader = val_evaluator = None
"""
ONE = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
SECOND = 'Epoch(train) [2][1/2]'
# The process dies when half of a file of this name is written.
DIES = """
import builtins, os, signal
plain = builtins.open
class Half:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def write(self, content):
        self.file.write(content[:len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
def opening(name, mode='r', *args, **kwargs):
    file = plain(name, mode, *args, **kwargs)
    return Half(file) if 'w' in mode and str(name).endswith('NAME') else file
builtins.open = opening
"""
# A file can grow to so many bytes, as on a full disk.
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
"""
# Longer moments in which a checkpoint is not whole yet.
SLOW = """
import os, time
plain = os.fsync
def fsync(file):
    time.sleep(0.3)
    plain(file)
os.fsync = fsync
"""


@pytest.fixture(scope='module', autouse=True)
def project(tmp_path_factory):
    with runs.inside(tmp_path_factory.mktemp('faults')):
        write_coco_squares('data')
        Path('detector.py').write_text(CONFIG)
        yield


@pytest.fixture(scope='module')
def tools(project):
    started = Tools()
    yield started
    started.close()


@pytest.fixture(scope='module')
def whole(tools):
    """The work folder of the training that nothing happened to."""
    assert train(tools, 'whole')[0] == 0
    return Path('whole')


def train(tools, work_dir, *flags, **kwargs):
    return tools('train', 'detector.py', '--work-dir', work_dir, *flags,
                 **kwargs)


def saved(work_dir):
    return sorted(path.name for path in Path(work_dir).glob('*.pth'))


def assert_equal(path, other):
    first, second = (torch.load(p, weights_only=True) for p in (path, other))
    for key, value in first['state_dict'].items():
        assert torch.equal(value, second['state_dict'][key]), key
    states = [file['optimizer']['state'] for file in (first, second)]
    for index, state in states[0].items():
        assert torch.equal(state['momentum_buffer'],
                           states[1][index]['momentum_buffer'])


# ------------------------------------------------------------------- kills


def test_four_deaths(tools, whole):
    """One training that keeps one checkpoint, and what it ends as."""
    last = f'epoch_{EPOCHS}.pth'
    # In the middle of the second checkpoint.
    code, log = train(tools, 'killed', *ONE,
                      before=DIES.replace('NAME', 'epoch_2.pth'))
    assert code == -signal.SIGKILL and 'Saving checkpoint at 2 epochs' in log
    assert saved('killed') == ['epoch_1.pth']
    assert_equal('killed/epoch_1.pth', whole / 'epoch_1.pth')
    # In the middle of an epoch.
    code, log = train(tools, 'killed', '--resume', *ONE,
                      kill=(SECOND, signal.SIGTERM, 0))
    assert code == -signal.SIGTERM and 'resumed epoch: 1' in log
    assert saved('killed') == ['epoch_1.pth']
    # No space for the second checkpoint.
    code, log = train(tools, 'killed', '--resume', *ONE, before=FULL)
    assert code == 1 and saved('killed') == ['epoch_1.pth']
    assert not list(Path('killed').glob('.*.partial'))
    assert re.search(r'OSError: .*too large.*make room, then go on with --resume'
                     r".*killed/epoch_2.pth'", log)
    # In the middle of last_checkpoint: what it named is there still.
    code, log = train(tools, 'killed', '--resume', *ONE,
                      before=DIES.replace('NAME', 'last_checkpoint'))
    assert code == -signal.SIGKILL
    assert saved('killed') == ['epoch_1.pth', 'epoch_2.pth']
    pointer = Path('killed/last_checkpoint').read_text()
    assert pointer.endswith('epoch_1.pth')

    code, log = train(tools, 'killed', '--resume', *ONE)
    # The second one was whole, though it was not named yet.
    assert code == 0 and 'resumed epoch: 2' in log
    assert not re.search(r'Epoch\(train\) *\[[12]\]', log)
    assert saved('killed') == [last]
    assert_equal(f'killed/{last}', whole / last)


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('flags', [(), ONE])
def test_killed_in_the_middle_of_an_epoch(how, flags, tools, whole):
    work = f'epoch-{how}-{len(flags)}'
    code, _ = train(tools, work, *flags, kill=(SECOND, how, 0))
    assert code == -how
    code, log = train(tools, work, '--resume', *flags)
    assert code == 0 and 'resumed epoch: 1' in log
    assert_equal(f'{work}/epoch_{EPOCHS}.pth', whole / f'epoch_{EPOCHS}.pth')


@pytest.mark.slow
@pytest.mark.parametrize('trial', range(4))
def test_killed_whenever(trial, tools, whole):
    """Again and again, mostly while a checkpoint is not whole yet."""
    generator, kills, code, work = random.Random(trial), 0, 1, f'whenever-{trial}'
    while code:
        last = kills == 4
        code, log = train(
            tools, work, '--resume', *ONE, before=SLOW, kill=None if last else
            ('Checkpoints will be saved', signal.SIGKILL,
             generator.uniform(0, 4)))
        assert code in (0, -signal.SIGKILL) and not (last and code), log
        kills += code != 0
        names = saved(work)
        for name in names:
            torch.load(f'{work}/{name}', weights_only=True)
        print(f'trial {trial}: {code} leaves {names}',
              [p.name for p in Path(work).glob('.*.partial')])
    assert kills and saved(work) == [f'epoch_{EPOCHS}.pth']
    assert_equal(f'{work}/epoch_{EPOCHS}.pth', whole / f'epoch_{EPOCHS}.pth')


# ------------------------------------------------------ broken checkpoints


@pytest.fixture
def begun(whole, tmp_path):
    """A copy of the first two epochs."""
    for epoch in (1, 2):
        shutil.copy(whole / f'epoch_{epoch}.pth', tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-5000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize('damage', [cut, flip, Path.unlink])
def test_resume_leaves_a_damaged_checkpoint_out(damage, begun, whole):
    damage(begun / 'epoch_2.pth')
    with pytest.warns(UserWarning, match='epoch_2.pth'):
        runs.train('detector.py', begun, flags=['--resume'])
    # Threads differ from those of the other training, and so do last digits.
    first, second = (
        torch.load(folder / f'epoch_{EPOCHS}.pth', weights_only=True)
        for folder in (begun, whole))
    assert first['meta']['iter'] == second['meta']['iter'] == 2 * EPOCHS
    for key, value in first['state_dict'].items():
        torch.testing.assert_close(value, second['state_dict'][key],
                                   rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('damage', [cut, flip])
def test_a_damaged_checkpoint_is_refused_by_its_name(damage, begun):
    path = begun / 'epoch_1.pth'
    damage(path)
    named = pytest.raises(ValueError, match=re.escape(str(path)))
    with named:
        runs.run_test('detector.py', path, begun)
    with named:
        runs.train('detector.py', begun, flags=['--resume', str(path)])
    with named:
        runs.train('detector.py', begun, f'load_from={path}')


# --------------------------------------------------------- broken data sets


def empty(path):
    path.write_bytes(b'')


def garble(path):
    path.write_bytes(path.read_bytes()[:20] + bytes(200))


BROKEN = dict(missing=Path.unlink, empty=empty, garbled=garble)


@pytest.fixture
def data(tmp_path):
    """A copy of the data; one image is a JPEG."""
    folder = shutil.copytree('data', tmp_path / 'data')
    coco = json.loads((folder / 'annotations.json').read_text())
    image = cv2.imread(str(folder / 'images/002.png'))
    cv2.imwrite(str(folder / 'images/002.jpg'), image)
    coco['images'][1]['file_name'] = '002.jpg'
    (folder / 'annotations.json').write_text(json.dumps(coco))
    return folder


@contextlib.contextmanager
def naming(path):
    with pytest.raises(Exception, match=re.escape(path)) as caught:
        yield
    assert isinstance(caught.value, (OSError, RuntimeError, AssertionError))


@pytest.mark.parametrize('damage', BROKEN)
def test_a_broken_image_is_named(damage, data, tmp_path):
    BROKEN[damage](data / 'images/002.jpg')
    options = [f'{split}_dataloader.dataset.data_root={data}'
               for split in ('train', 'test')]
    with naming(str(data / 'images/002.jpg')):
        runs.train('detector.py', tmp_path / 'run', *options)
    if damage == 'empty':
        torch.save(dict(state_dict={}), tmp_path / 'a.pth')
        with naming(str(data / 'images/002.jpg')):
            runs.run_test('detector.py', tmp_path / 'a.pth', tmp_path / 'run',
                          options=options)


@pytest.mark.parametrize('start', [
    'fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_a_broken_image_is_named_by_workers(data, start):
    init_default_scope('mmdet')
    name_broken_samples()
    empty(data / 'images/002.jpg')
    cfg = Config.fromfile('detector.py').train_dataloader.dataset
    dataset = DATASETS.build(dict(cfg, data_root=str(data)))
    loader = torch.utils.data.DataLoader(
        dataset, num_workers=1, collate_fn=list, multiprocessing_context=start)
    with naming(str(data / 'images/002.jpg')):
        list(loader)


@pytest.mark.parametrize('damage', BROKEN)
@pytest.mark.parametrize('kind', ['images', 'labels'])
def test_a_broken_file_of_a_segmentor_is_named(kind, damage, tmp_path):
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    name_broken_samples()
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
        picture = np.random.default_rng(0).integers(0, 2, (32, 32), np.uint8)
        cv2.imwrite(str(tmp_path / folder / 'a.png'), picture)
    settings = dict(
        type='mmseg.BaseSegDataset', data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png', seg_map_suffix='.png', metainfo=dict(classes='ab'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')])
    dataset = DATASETS.build(settings)
    assert dataset[0]['gt_seg_map'].shape == (32, 32)
    path = tmp_path / kind / 'a.png'
    BROKEN[damage](path)
    with naming(str(path)):
        dataset[0]


# --------------------------------------------------------------- annotations

BOXES = {
    'no width': dict(bbox=[10, 10, 0, 20], area=0),
    'no area': dict(bbox=[10, 10, 20, 20], area=0),
    'negative': dict(bbox=[30, 30, -20, -20], area=400),
    'outside': dict(bbox=[100, 100, 20, 20], area=400),
    'outside, left': dict(bbox=[-50, 10, 20, 20], area=400),
}


def annotate(data, image_id, *boxes):
    path = data / 'annotations.json'
    coco = json.loads(path.read_text())
    for box in boxes:
        coco['annotations'].append(dict(
            box, id=1000 + len(coco['annotations']), image_id=image_id,
            category_id=1, iscrowd=0))
    path.write_text(json.dumps(coco))


def test_boxes_without_pixels_are_left_out(data):
    """As mmdet's CocoDataset documents; what is partly outside stays."""
    init_default_scope('mmdet')
    annotate(data, 1, *BOXES.values(), dict(bbox=[50, 50, 30, 30], area=900))
    cfg = Config.fromfile('detector.py').train_dataloader.dataset
    first, *others = DATASETS.build(dict(cfg, data_root=str(data)))
    assert len(first['data_samples'].gt_instances) == 2
    assert all(len(one['data_samples'].gt_instances) == 1 for one in others)


def test_an_image_of_nothing_but_such_boxes_trains(data, tmp_path):
    path = data / 'annotations.json'
    coco = json.loads(path.read_text())
    coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] > 2]
    path.write_text(json.dumps(coco))
    for image_id in (1, 2):
        annotate(data, image_id, *BOXES.values())
    work = runs.train(
        'detector.py', tmp_path / 'run', 'train_cfg.max_epochs=1',
        f'train_dataloader.dataset.data_root={data}')
    log, = work.glob('*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in log.read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()


def put_classes(*names):
    return [f'{split}_dataloader.dataset.metainfo.classes={names}'
            for split in ('train', 'test')]


@pytest.mark.parametrize('options, words', [
    (put_classes('circle'), "'circle' of the dataset is no category .*'square'"),
    (put_classes('disc', 'square'), "'disc' of the dataset is no category"),
    (['model.bbox_head.num_classes=80'], 'bbox_head .*num_classes=80'),
    (['model.bbox_head.num_classes=2'], 'bbox_head .*num_classes=2'),
])
def test_classes_that_do_not_fit_are_refused(options, words, tmp_path):
    """Before anything is trained or tested, in every way."""
    with pytest.raises(ValueError, match=words):
        runs.train('detector.py', tmp_path / 'run', *options)
    assert not list(tmp_path.glob('run/*/vis_data/*.json'))
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=words):
        runs.run_test('detector.py', tmp_path / 'a.pth', tmp_path / 'test',
                      options=options)
