"""Trainings that are killed or run out of disk space, and damaged checkpoints."""

import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import runs
from helpers.square_detector import DETECTOR
from helpers.synthetic_data import write_coco_squares
from helpers.tool_processes import Tools

EPOCHS = 3
# The training draws random numbers, for mirror images.
CONFIG = DETECTOR + f"""
train_dataloader['dataset']['pipeline'].insert(
    2, dict(type='RandomFlip', prob=0.5))
custom_hooks = [dict(type='fpt_plugin.ReseedHook')]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs={EPOCHS})
val_cfg = val_dataloader = val_evaluator = None
"""
KEEP_ONE = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
SECOND_EPOCH = 'Epoch(train) [2][1/2]'
# Kill the process when half of a file of this name is written.
KILL_IN_WRITE = """
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
# Limit the size of files in bytes, as on a full disk.
FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
"""
# Lengthen the moments in which a checkpoint is incomplete.
SLOW_WRITE = """
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
    """Return the work folder of an undisturbed training."""
    assert train(tools, 'whole')[0] == 0
    return Path('whole')


def train(tools, work_dir, *flags, **kwargs):
    return tools('train', 'detector.py', '--work-dir', work_dir, *flags, **kwargs)


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


def test_training_survives_four_faults(tools, whole):
    """It keeps one checkpoint, resumes after each fault, and ends bit for bit equal."""
    last = f'epoch_{EPOCHS}.pth'
    # Killed while the second checkpoint is written.
    code, log = train(tools, 'killed', *KEEP_ONE,
                      before=KILL_IN_WRITE.replace('NAME', 'epoch_2.pth'))
    assert code == -signal.SIGKILL and 'Saving checkpoint at 2 epochs' in log
    assert saved('killed') == ['epoch_1.pth']
    assert_equal('killed/epoch_1.pth', whole / 'epoch_1.pth')
    # Terminated in an epoch.
    code, log = train(tools, 'killed', '--resume', *KEEP_ONE,
                      kill=(SECOND_EPOCH, signal.SIGTERM, 0))
    assert code == -signal.SIGTERM and 'resumed epoch: 1' in log
    assert saved('killed') == ['epoch_1.pth']
    # No space for the second checkpoint.
    code, log = train(tools, 'killed', '--resume', *KEEP_ONE, before=FULL_DISK)
    assert code == 1 and saved('killed') == ['epoch_1.pth']
    assert not list(Path('killed').glob('.*.partial'))
    assert re.search(r'OSError: .*too large.*make room, then go on with --resume'
                     r".*killed/epoch_2.pth'", log)
    # Killed while last_checkpoint is written: its old target still exists.
    code, log = train(tools, 'killed', '--resume', *KEEP_ONE,
                      before=KILL_IN_WRITE.replace('NAME', 'last_checkpoint'))
    assert code == -signal.SIGKILL
    assert saved('killed') == ['epoch_1.pth', 'epoch_2.pth']
    pointer = Path('killed/last_checkpoint').read_text()
    assert pointer.endswith('epoch_1.pth')

    code, log = train(tools, 'killed', '--resume', *KEEP_ONE)
    # The second checkpoint was complete, but not yet named.
    assert code == 0 and 'resumed epoch: 2' in log
    assert not re.search(r'Epoch\(train\) *\[[12]\]', log)
    assert saved('killed') == [last]
    assert_equal(f'killed/{last}', whole / last)


@pytest.mark.slow
@pytest.mark.parametrize('trial', range(4))
def test_killed_at_random_times(trial, tools, whole):
    """Most kills come while a checkpoint is incomplete."""
    generator, kills, code, work = random.Random(trial), 0, 1, f'random-{trial}'
    while code:
        kill = None if kills == 4 else (
            'Checkpoints will be saved', signal.SIGKILL, generator.uniform(0, 4))
        code, log = train(tools, work, '--resume', *KEEP_ONE, before=SLOW_WRITE,
                          kill=kill)
        assert code == 0 or kill and code == -signal.SIGKILL, log
        kills += code != 0
        for name in saved(work):
            torch.load(f'{work}/{name}', weights_only=True)
    assert kills and saved(work) == [f'epoch_{EPOCHS}.pth']
    assert_equal(f'{work}/epoch_{EPOCHS}.pth', whole / f'epoch_{EPOCHS}.pth')


# ----------------------------------------------------- damaged checkpoints


@pytest.fixture
def begun(whole, tmp_path):
    """Copy the checkpoints of the first two epochs."""
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
def test_resume_skips_a_damaged_checkpoint(damage, begun, whole):
    damage(begun / 'epoch_2.pth')
    with pytest.warns(UserWarning, match='epoch_2.pth'):
        runs.train('detector.py', begun, flags=['--resume'])
    # The last digits differ, because the number of threads does.
    first, second = (torch.load(folder / f'epoch_{EPOCHS}.pth', weights_only=True)
                     for folder in (begun, whole))
    assert first['meta']['iter'] == second['meta']['iter'] == 2 * EPOCHS
    for key, value in first['state_dict'].items():
        torch.testing.assert_close(
            value, second['state_dict'][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('damage', [cut, flip])
def test_damaged_checkpoint_is_named(damage, begun):
    path = begun / 'epoch_1.pth'
    damage(path)
    named = pytest.raises(ValueError, match=re.escape(str(path)))
    with named:
        runs.run_test('detector.py', path, begun)
    with named:
        runs.train('detector.py', begun, flags=['--resume', str(path)])
    with named:
        runs.train('detector.py', begun, f'load_from={path}')
