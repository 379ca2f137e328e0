"""Imports and the building of models use no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Block the network before anything is imported.
NO_NETWORK = """
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
"""

IMPORTS = """
import pkgutil
from importlib import import_module
import fpt_plugin
names = [m.name for m in pkgutil.walk_packages(fpt_plugin.__path__,
                                               'fpt_plugin.')]
for name in names:
    import_module(name)
print(len(names), 'modules')
"""

# Build one config of each backbone, with the weights that it names. Zeros in place of
# random weights save time; every constructor runs.
MODELS = """
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from helpers.shipped_configs import ALL, CONFIGS
from fpt_plugin.commands.graft.weights import ZerosForRandom

def build(cfg):
    init_default_scope(cfg.default_scope)
    with ZerosForRandom():
        return MODELS.build(cfg.model)

chosen = {}
for name in ALL:
    folder, _, file = name.partition('/')
    chosen.setdefault((folder, *file.split('_')[1:2]), name)
fetching = 0
for name in chosen.values():
    cfg = Config.fromfile(CONFIGS / name)
    fetching += '://' in str(cfg.model)
    build(cfg)
print(len(chosen), 'configs', fetching, 'with weights')
"""

LOAD_MODEL = """
import os
import mmdet
from fpt_plugin.commands.common import load_model
from fpt_plugin.openmmlab.models import load_config
teacher = 'mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py'
# the path of the teacher's config is relative to a checkout
os.chdir(os.path.join(mmdet.__path__[0], '.mim'))
with ZerosForRandom():
    model, _ = load_model(teacher)
print('a student of', type(model.teacher_model).__name__)
"""

# Show that the block works.
REACHING = """
from urllib.error import URLError
for reach in (lambda: build(load_config(teacher)),
              lambda: MODELS.build(dict(
                  type='mmdet.ResNet', depth=18, init_cfg=dict(
                      type='Pretrained', checkpoint='https://a.example/w.pth')
                  )).init_weights()):
    try:
        reach()
    except (Blocked, URLError) as error:
        print('refused', error)
"""


def test_imports_and_models_use_no_network(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    env = {**os.environ, 'PYTHONPATH': path,
           **dict.fromkeys(('TORCH_HOME', 'HF_HOME', 'MMENGINE_HOME'), str(tmp_path))}
    code = ''.join([NO_NETWORK, IMPORTS, MODELS, LOAD_MODEL, REACHING])
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path,
                            env=env, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if line.split()[0].isdigit()
             or line.startswith(('a student', 'refused'))]
    modules, configs, student, *refused = lines
    assert int(modules.split()[0]) > 60
    count, _, fetching, *_ = configs.split()
    assert int(count) > 15 and int(fetching) > 5
    assert student == 'a student of GFL'
    assert len(refused) == 2
    assert all('the network is blocked' in line for line in refused)
    assert not list(tmp_path.rglob('*.pth'))
