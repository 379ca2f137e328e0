"""What the OpenMMLab libraries get wrong, mended when the package is imported.

Each mend is narrow, and does nothing where the installed versions do not need
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
from .resuming import name_what_cannot_be_resumed
from .safe_loading import allow_safe_resume, keep_the_stand_ins
from .versions import version_of


def apply() -> None:
    """Apply every mend; more than once is harmless."""
    allow_safe_resume()
    keep_the_stand_ins()
    find_config_packages()
    keep_host_scope()
    let_cityscapes_evaluate()
    name_broken_samples()
    name_what_cannot_be_resumed()
    switch_necks_by_module()
    load_plain_necks_into_lists()
    keep_checkpointed_gradients()
    load_arrays_as_files()
    name_empty_datasets()


def find_config_packages() -> None:
    """Let ``_base_ = 'fpt_plugin::...'`` and ``'mmseg::...'`` find configs.

    mmengine looks the package of a scope up in a table of its own projects.
    """
    # A module that is no distribution: mmengine then takes the folder that is
    # imported. It would look beside the distribution's metadata, which
    # ``pip install -e`` does not keep beside the package.
    MODULE2PACKAGE['fpt_plugin'] = 'fpt_plugin.version'
    # The fork's distribution carries another name than the table's.
    if version_of('mmsegmentation') is None \
            and version_of('onedl-mmsegmentation') is not None:
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


def keep_host_scope() -> None:
    """Read ``fpt_plugin::`` bases in the scope of the config that names them.

    What a config takes from a base of another package, as in
    ``_base_.train_pipeline``, mmengine marks with that package's scope. Our
    configs are the hosts' own but for the neck, and a scope of ours would
    build mmcv's transforms where mmdet's of the same name are meant.
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
    """Give cityscapesscripts the ``numpy.in1d`` that numpy 2.4 took away.

    mmdet's CityScapesMetric calls it when a whole validation is over. The
    function goes to the one module that needs it; numpy stays as it is.
    """
    if hasattr(np, 'in1d'):
        return
    try:
        scripts = import_module(
            'cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling')
    except ImportError:
        return  # mmdet says what to install
    if scripts.np is np:
        scripts.np = SimpleNamespace(**vars(np), in1d=_in1d)


def _in1d(elements: np.ndarray, tested, **options) -> np.ndarray:
    """Which elements of an array, seen as one row, are among others."""
    return np.isin(np.ravel(elements), tested, **options)
