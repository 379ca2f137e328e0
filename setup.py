"""Package metadata; needs nothing but setuptools to build."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# The two OpenMMLab distributions share their import names, so neither can be
# a hard requirement.
STOCK = [
    'mmengine==0.10.7', 'mmcv==2.1.0', 'mmdet==3.3.0', 'mmsegmentation==1.2.2',
    # mmseg imports them without requiring them; mmengine imports pkg_resources
    'ftfy', 'regex', 'setuptools<81'
]
ONEDL = [
    'onedl-mmengine>=0.10.9', 'onedl-mmcv>=2.3.6', 'onedl-mmdetection>=3.5.1',
    'onedl-mmsegmentation>=1.4.2', 'ftfy', 'regex'
]
DEV = ['pytest>=8', 'pytest-cov', 'hypothesis', 'ruff']


def read_version() -> str:
    """The version without importing the package, which would import torch."""
    scope: dict = {}
    exec((ROOT / 'fpt_plugin' / 'version.py').read_text(), scope)
    return scope['__version__']


setup(
    name='fpt-plugin',
    version=read_version(),
    description='Feature Pyramid Transformer necks for MMDetection 3.x and '
    'MMSegmentation 1.x',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['fpt_plugin', 'fpt_plugin.*']),
    python_requires='>=3.9',
    install_requires=['torch>=2.1', 'numpy'],
    extras_require=dict(stock=STOCK, onedl=ONEDL, dev=DEV),
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
