"""Imports and the building of models use no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CODE = """
import socket

class Blocked(Exception):
    pass

def refuse(*args, **kwargs):
    raise Blocked('the network is blocked')

class Closed(socket.socket):  # a class, because libraries subclass it
    __init__ = refuse

socket.socket = Closed
socket.create_connection = socket.getaddrinfo = refuse
socket.gethostbyname = socket.gethostbyname_ex = refuse

import os, pkgutil
from importlib import import_module
from urllib.error import URLError
import fpt_plugin

names = [m.name for m in pkgutil.walk_packages(fpt_plugin.__path__, 'fpt_plugin.')]
assert len(names) > 60
for name in names:
    import_module(name)

import mmdet
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from helpers.shipped_configs import ALL, CONFIGS
from fpt_plugin.commands.common import load_model
from fpt_plugin.commands.graft.weights import ZerosForRandom
from fpt_plugin.openmmlab.models import load_config

def build(cfg):
    init_default_scope(cfg.default_scope)
    with ZerosForRandom():  # random weights would take minutes
        return MODELS.build(cfg.model)

# One config of each backbone, with the weights that it names.
chosen = {}
for name in ALL:
    folder, _, file = name.partition('/')
    chosen.setdefault((folder, *file.split('_')[1:2]), name)
configs = [Config.fromfile(CONFIGS / name) for name in chosen.values()]
assert len(configs) > 15 and sum('://' in str(cfg.model) for cfg in configs) > 5
for cfg in configs:
    build(cfg)

# A config that names the config of a teacher, relative to a checkout of mmdet.
student = 'mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py'
os.chdir(os.path.join(mmdet.__path__[0], '.mim'))
with ZerosForRandom():
    model, _ = load_model(student)
assert type(model.teacher_model).__name__ == 'GFL'

# Show that the block works.
weights = dict(type='Pretrained', checkpoint='https://a.example/w.pth')
resnet = MODELS.build(dict(type='mmdet.ResNet', depth=18, init_cfg=weights))
for download in (lambda: build(load_config(student)), resnet.init_weights):
    try:
        download()
    except (Blocked, URLError) as error:
        assert 'the network is blocked' in str(error)
    else:
        raise AssertionError(download)
print('done')
"""


def test_imports_and_models_use_no_network(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    env = {**os.environ, 'PYTHONPATH': path,
           **dict.fromkeys(('TORCH_HOME', 'HF_HOME', 'MMENGINE_HOME'), str(tmp_path))}
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', CODE], cwd=tmp_path,
                            env=env, capture_output=True, text=True, timeout=900)
    assert result.stdout.endswith('done\n'), result.stdout + result.stderr
    assert not list(tmp_path.rglob('*.pth'))
