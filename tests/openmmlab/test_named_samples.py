"""Processes that are spawned to load data name broken samples, too."""

import copy
import os
import pickle
import subprocess
import sys
from multiprocessing.context import get_spawning_popen, set_spawning_popen
from pathlib import Path

import pytest
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset

from fpt_plugin.openmmlab.named_samples import name_broken_samples

name_broken_samples()
# Unpickles a data set as a spawned process does, and reads its first sample.
WORKER = '''
import pickle, sys
dataset = pickle.load(sys.stdin.buffer)
assert not any(name.startswith('mmdet') for name in sys.modules)
try:
    dataset[0]
except RuntimeError as error:
    print(error)
'''


def broken():
    dataset = BaseDataset(pipeline=[abs], serialize_data=False, lazy_init=True)
    dataset.data_list = [dict(img_path='images/7.png')]
    dataset._fully_initialized = True
    return dataset


def sent(dataset):
    """What is sent to a process that is spawned."""
    set_spawning_popen(object())
    try:
        return pickle.dumps(dataset)
    finally:
        set_spawning_popen(None)


@pytest.mark.parametrize('wrap', [
    lambda dataset: dataset, lambda dataset: ConcatDataset([dataset]),
    lambda dataset: RepeatDataset(dataset, 2)])
def test_in_a_process_that_has_not_imported_the_package(wrap):
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', WORKER], input=sent(wrap(broken())),
        capture_output=True, env=dict(os.environ, PYTHONPATH=path), check=True)
    assert b'the sample images/7.png cannot be used' in done.stdout


def test_copies_and_files_stay_the_hosts_own():
    dataset = broken()
    assert get_spawning_popen() is None
    assert b'fpt_plugin' not in pickle.dumps(dataset)
    assert b'fpt_plugin' in sent(dataset)
    for again in (copy.deepcopy(dataset), copy.copy(dataset),
                  pickle.loads(sent(dataset))):
        assert type(again) is BaseDataset
        assert again.data_list == dataset.data_list


def test_a_data_set_with_a_way_of_its_own():

    class Own(BaseDataset):

        def __getstate__(self):
            return dict(kept=7)

        def __setstate__(self, state):
            self.kept = state['kept']

    globals()['Own'] = Own
    Own.__qualname__ = 'Own'
    assert pickle.loads(sent(Own(lazy_init=True))).kept == 7
