"""The check of the installed OpenMMLab versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from fpt_plugin import FPT
from fpt_plugin.openmmlab import versions


@pytest.fixture
def hosts(monkeypatch):
    """Replace the installed versions: by distribution and by module."""
    distributions, modules = {}, {}

    def version(name):
        if name in distributions:
            return distributions[name]
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, 'version', version)
    monkeypatch.setattr(versions, 'sys', SimpleNamespace(modules=modules))
    versions.check_versions.cache_clear()
    yield distributions, modules
    versions.check_versions.cache_clear()


@pytest.mark.parametrize('name, version', [
    ('mmdet', '3.0.0'), ('mmdet', '3.3.0'), ('onedl-mmdetection', '3.5.1'),
    ('mmsegmentation', '1.2.2'), ('mmcv', '2.2.0'), ('mmcv-lite', '2.1.0'),
    ('mmengine', '0.10.7'), ('unrelated', '0.0.1')
])
def test_supported_versions(hosts, name, version):
    hosts[0][name] = version
    versions.check_versions()


@pytest.mark.parametrize('name, version, words', [
    ('mmdet', '2.28.2', 'needs mmdet >=3.0.0,<4, got 2.28.2'),
    ('mmdet', '4.0.0', 'needs mmdet >=3.0.0,<4, got 4.0.0'),
    ('mmcv', '1.7.1', "pip install 'mmcv>=2.0.0,<3'"),
    ('onedl-mmsegmentation', '0.30.0', 'needs mmseg >=1.0.0,<2'),
    ('mmengine', '0.6.0', 'needs mmengine >=0.7.1,<1, got 0.6.0'),
])
def test_no_model_is_built_with_unsupported_versions(hosts, name, version, words):
    hosts[0][name] = version
    with pytest.raises(ImportError, match=words):
        FPT(8, 8, pyramid=None, num_levels=1)
    hosts[0].clear()
    FPT(8, 8, pyramid=None, num_levels=1)


@pytest.mark.parametrize('installed, imported, words', [
    (dict(mmdet='3.3.0'), '2.25.0', 'got 2.25.0'),  # the imported version counts
    ({'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'}, None,
     'overwrite each other.*pip uninstall mmcv onedl-mmcv')])
def test_two_versions_of_one_library(hosts, installed, imported, words):
    hosts[0].update(installed)
    hosts[1]['mmdet'] = SimpleNamespace(__version__=imported)
    with pytest.raises(ImportError, match=words):
        versions.check_versions()
