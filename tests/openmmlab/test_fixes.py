"""Each fix of the OpenMMLab libraries is needed, works, and can be applied twice."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.model import Sequential

from fpt_plugin import FPT
from fpt_plugin.openmmlab import fixes


def read(base):
    return Config.fromstring(f'_base_ = {base!r}', '.py')


def test_cityscapes_scripts_get_in1d():
    scripts = pytest.importorskip(
        'cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling')
    labels = np.array([[0, 7], [26, 255]])
    scripts.np = np
    if not hasattr(np, 'in1d'):  # since numpy 2.4
        with pytest.raises(AttributeError, match='in1d'):
            scripts.np.in1d(labels, [0])
    fixes.let_cityscapes_evaluate()
    fixed = scripts.np
    assert fixed.in1d(labels, [0, 26]).tolist() == [True, False, True, False]
    assert fixed.in1d(labels, [0], invert=True).tolist() == [False, True, True, True]
    assert fixed.float64 is np.float64
    assert (fixed is np) == hasattr(np, 'in1d')
    fixes.apply()
    assert scripts.np is fixed


def test_bases_of_the_package(monkeypatch):
    base = 'fpt_plugin::fpt/faster-rcnn_r50_fpt_1x_coco.py'
    monkeypatch.delitem(MODULE2PACKAGE, 'fpt_plugin')
    with pytest.raises(Exception, match='load fpt_plugin config'):
        read(base)
    fixes.find_config_packages()
    assert read(base).model.neck.type == 'FPT'


@pytest.mark.parametrize('package', ['mmsegmentation', 'onedl-mmsegmentation'])
def test_bases_of_mmseg(package, monkeypatch):
    """mmengine's table has only the name of the stock distribution."""
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(fixes, 'version_of', {package: '1.4.2'}.get)
    fixes.find_config_packages()
    assert MODULE2PACKAGE['mmseg'] == package


def test_variables_of_bases_keep_the_scope(monkeypatch, tmp_path):
    own = tmp_path / 'mine.py'
    own.write_text("_base_ = 'fpt_plugin::quickstart/"
                   "faster-rcnn_mobilenet-v2_fpt_trees.py'\n"
                   'pipeline = _base_.train_pipeline')

    def scopes():
        return {step.get('_scope_') for step in Config.fromfile(own).pipeline}

    monkeypatch.setattr(Config, '_get_cfg_path',
                        staticmethod(Config._get_cfg_path.__wrapped__))
    assert scopes() == {'fpt_plugin'}
    fixes.keep_host_scope()
    once = Config._get_cfg_path
    assert scopes() == {None}
    fixes.keep_host_scope()
    assert Config._get_cfg_path is once


def test_lists_of_necks_load_plain_checkpoints(monkeypatch):

    def unexpected():
        necks = Sequential(
            torch.nn.Conv2d(8, 8, 1), FPT(8, 8, pyramid=None, num_levels=2))
        return necks.load_state_dict(
            torch.nn.Conv2d(8, 8, 1).state_dict(), strict=False).unexpected_keys

    fixed = Sequential._load_from_state_dict
    monkeypatch.setattr(Sequential, '_load_from_state_dict', fixed.__wrapped__)
    assert unexpected() == ['weight', 'bias']
    fixes.load_plain_necks_into_lists()
    assert not unexpected()
    once = Sequential._load_from_state_dict
    fixes.load_plain_necks_into_lists()
    assert Sequential._load_from_state_dict is once
