"""A tool that fails exits with one line, which names the cause, and writes nothing."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.folders import names
from helpers.runs import inside
from mmengine.device import get_device

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / 'configs/quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py')


@pytest.mark.parametrize('tool, arguments, words', [
    ('graft', ['empty.py'], 'the config must set model'),
    ('convert_weights', ['d-li14', 'none.pth', 'out.pth'], '.*No such file'),
    ('convert_weights', ['d-li14', 'a.pth', 'out.pth'], '.*got an unknown net'),
    ('publish_model', ['a.pth', 'a.safetensors'], '.*name it .pth'),
    ('export', [QUICKSTART, 'none', 'a.pt'], 'out must end in .onnx or .pt2'),
    pytest.param('train', [QUICKSTART, '--amp', '--work-dir', 'run'],
                 '--amp needs a CUDA device', marks=pytest.mark.skipif(
                     get_device() != 'cpu', reason='a CUDA device'))])
def test_a_failure_is_one_line(tool, arguments, words, tmp_path, monkeypatch):
    (tmp_path / 'empty.py').write_text('default_scope = "mmdet"\n')
    torch.save(dict(a=torch.ones(1)), tmp_path / 'a.pth')
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    with inside(tmp_path), pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f'tools/{tool}.py'), run_name='__main__')
    assert re.fullmatch(f'{tool} failed: {words}.*', end.value.code)
    assert names(tmp_path) == ['a.pth', 'empty.py']
