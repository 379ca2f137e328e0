"""Nothing of ours reaches out on import, or when a model is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Every way out of the process is closed, before anything is imported.
NO_NETWORK = """
import socket

class Blocked(Exception):
    pass

def refuse(*args, **kwargs):
    raise Blocked('the network was asked for')

class Closed(socket.socket):  # others make subclasses of it
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

# With the weights that their configs name, one config of each backbone. Nothing
# is drawn, which is what takes the time; every constructor runs.
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
# it names the teacher's config as seen from a checkout
os.chdir(os.path.join(mmdet.__path__[0], '.mim'))
with ZerosForRandom():
    model, _ = load_model(teacher)
print('a student of', type(model.teacher_model).__name__)
"""

# What the others would look like if they did reach out.
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


def test_imports_and_models_reach_for_nothing(tmp_path):
    env = {**os.environ, 'TORCH_HOME': str(tmp_path), 'HF_HOME': str(tmp_path),
           'MMENGINE_HOME': str(tmp_path),
           'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')])}
    code = ''.join([NO_NETWORK, IMPORTS, MODELS, LOAD_MODEL, REACHING])
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code],
                            cwd=tmp_path, env=env, capture_output=True,
                            text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    said = [line for line in result.stdout.splitlines() if line.split()[0].isdigit()
            or line.startswith(('a student', 'refused'))]
    modules, configs, student, *refused = said
    assert int(modules.split()[0]) > 60
    count, _, fetching, *_ = configs.split()
    assert int(count) > 15 and int(fetching) > 5
    assert student == 'a student of GFL'
    # The lock holds: weights that are asked for would have been noticed.
    assert len(refused) == 2
    assert all('the network was asked for' in line for line in refused)
    assert not list(tmp_path.rglob('*.pth'))
