"""Fixes of the OpenMMLab libraries, applied when the package is imported.

Each fix is narrow, and does nothing where the installed versions do not need
it.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from types import SimpleNamespace

import numpy as np
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .activation_checkpointing import keep_checkpointed_gradients
from .array_images import load_arrays_as_files
from .conv_bn_eval import switch_necks_by_module
from .empty_datasets import name_empty_datasets
from .list_necks import load_plain_necks_into_lists
from .named_samples import name_broken_samples
from .resuming import explain_failed_resumes
from .safe_loading import allow_safe_resume, keep_restricted_globals
from .versions import version_of


def apply() -> None:
    """Apply all fixes; calling it again changes nothing."""
    allow_safe_resume()
    keep_restricted_globals()
    find_config_packages()
    keep_host_scope()
    let_cityscapes_evaluate()
    name_broken_samples()
    explain_failed_resumes()
    switch_necks_by_module()
    load_plain_necks_into_lists()
    keep_checkpointed_gradients()
    load_arrays_as_files()
    name_empty_datasets()


def find_config_packages() -> None:
    """Make ``_base_ = 'fpt_plugin::...'`` and ``'mmseg::...'`` find configs.

    mmengine maps a scope to its package by a table of OpenMMLab's projects.
    """
    # For a distribution mmengine searches next to its metadata, which
    # ``pip install -e`` stores elsewhere. For a module name that is no
    # distribution it searches the folder of the imported package.
    MODULE2PACKAGE['fpt_plugin'] = 'fpt_plugin.version'
    # The fork's distribution has another name than the one in the table.
    if version_of('mmsegmentation') is None \
            and version_of('onedl-mmsegmentation') is not None:
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


def keep_host_scope() -> None:
    """Read ``fpt_plugin::`` bases in the scope of the config that uses them.

    If a config uses a variable of a base from another package, such as
    ``_base_.train_pipeline``, mmengine marks it with that package's scope. Our
    configs are those of mmdet and mmseg with another neck. With the scope
    ``fpt_plugin``, mmcv's transforms would be built instead of mmdet's
    transforms of the same name.
    """
    original = Config._get_cfg_path
    if getattr(original, 'keeps_host_scope', False):
        return

    @wraps(original)
    def _get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = original(cfg_path, filename)
        return path, None if scope == 'fpt_plugin' else scope

    _get_cfg_path.keeps_host_scope = True
    Config._get_cfg_path = staticmethod(_get_cfg_path)


def let_cityscapes_evaluate() -> None:
    """Give cityscapesscripts the ``numpy.in1d`` that numpy 2.4 removed.

    mmdet's CityScapesMetric calls it at the end of a validation. Only the module
    that needs the function gets it; numpy is not changed.
    """
    if hasattr(np, 'in1d'):
        return
    try:
        scripts = import_module(
            'cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling')
    except ImportError:
        return  # mmdet's own error names the missing package
    if scripts.np is np:
        scripts.np = SimpleNamespace(**vars(np), in1d=_in1d)


def _in1d(elements: np.ndarray, tested, **options) -> np.ndarray:
    """Return whether each element of a flattened array is in ``tested``."""
    return np.isin(np.ravel(elements), tested, **options)
