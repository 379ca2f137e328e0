"""Spawned data loader workers name broken samples too."""

import copy
import os
import pickle
import subprocess
import sys
from multiprocessing.context import get_spawning_popen, set_spawning_popen
from pathlib import Path

from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset

from fpt_plugin.openmmlab.named_samples import name_broken_samples

name_broken_samples()
# Unpickles datasets as a spawned process does, and reads their first samples.
WORKER = '''
import pickle, sys
datasets = pickle.load(sys.stdin.buffer)
assert not any(name.startswith('mmdet') for name in sys.modules)
for dataset in datasets:
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
    """Pickle a dataset as for a spawned process."""
    set_spawning_popen(object())
    try:
        return pickle.dumps(dataset)
    finally:
        set_spawning_popen(None)


def test_a_process_that_has_not_imported_the_package():
    datasets = [broken(), ConcatDataset([broken()]), RepeatDataset(broken(), 2)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', WORKER], input=sent(datasets),
        capture_output=True, env=dict(os.environ, PYTHONPATH=path), check=True)
    assert done.stdout.count(b'the sample images/7.png cannot be used') == 3


def test_copies_and_files_do_not_need_the_package():
    dataset = broken()
    assert get_spawning_popen() is None
    assert b'fpt_plugin' not in pickle.dumps(dataset)
    assert b'fpt_plugin' in sent(dataset)
    for copied in (copy.deepcopy(dataset), copy.copy(dataset),
                   pickle.loads(sent(dataset))):
        assert type(copied) is BaseDataset
        assert copied.data_list == dataset.data_list
