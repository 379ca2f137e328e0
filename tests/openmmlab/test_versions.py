"""The check of the installed OpenMMLab versions."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from fpt_plugin import FPT
from fpt_plugin.openmmlab import versions


@pytest.fixture
def hosts(monkeypatch):
    """Versions by distribution and by module, in place of the installed."""
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


def test_the_installed_versions_fit():
    versions.check_versions.cache_clear()
    versions.check_versions()
    assert 'mmengine' in sys.modules


@pytest.mark.parametrize('name, version', [
    ('mmdet', '3.0.0'), ('mmdet', '3.3.0'), ('onedl-mmdetection', '3.5.1'),
    ('mmsegmentation', '1.2.2'), ('mmcv', '2.2.0'), ('mmcv-lite', '2.1.0'),
    ('mmengine', '0.10.7'), ('unrelated', '0.0.1')
])
def test_versions_that_fit(hosts, name, version):
    hosts[0][name] = version
    versions.check_versions()


@pytest.mark.parametrize('name, version, words', [
    ('mmdet', '2.28.2', 'needs mmdet >=3.0.0,<4, got 2.28.2'),
    ('mmdet', '4.0.0', 'needs mmdet >=3.0.0,<4, got 4.0.0'),
    ('mmcv', '1.7.1', "pip install 'mmcv>=2.0.0,<3'"),
    ('onedl-mmsegmentation', '0.30.0', 'needs mmseg >=1.0.0,<2'),
    ('mmengine', '0.6.0', 'needs mmengine >=0.7.1,<1, got 0.6.0'),
])
def test_a_model_is_not_built_on_other_versions(hosts, name, version, words):
    hosts[0][name] = version
    with pytest.raises(ImportError, match=words.replace('+', r'\+')):
        FPT(8, 8, pyramid=None, num_levels=1)
    hosts[0].clear()
    FPT(8, 8, pyramid=None, num_levels=1)


def test_what_is_imported_counts(hosts):
    hosts[0]['mmdet'] = '3.3.0'
    hosts[1]['mmdet'] = SimpleNamespace(__version__='2.25.0')
    with pytest.raises(ImportError, match='got 2.25.0'):
        versions.check_versions()


def test_two_distributions_of_one_host(hosts):
    hosts[0].update({'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'})
    with pytest.raises(ImportError, match='overwrite each other') as error:
        versions.check_versions()
    assert 'pip uninstall mmcv onedl-mmcv' in str(error.value)
