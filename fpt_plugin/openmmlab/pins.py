"""Versions of the OpenMMLab libraries: which are supported, which to install.

This is the only place that lists them. It imports none of the libraries, so the
doctor can read it where they are broken. setup.py and tools/environment.sh run
it as a file.
"""

# By import name: the distributions of a library, and the supported versions, which
# are those with mmengine's registries and configs: from, up to (excluded).
LIBRARIES = {
    'mmengine': (('mmengine', 'mmengine-lite', 'onedl-mmengine'), '0.7.1', '1'),
    'mmcv': (('mmcv', 'mmcv-lite', 'onedl-mmcv'), '2.0.0', '3'),
    'mmdet': (('mmdet', 'onedl-mmdetection'), '3.0.0', '4'),
    'mmseg': (('mmsegmentation', 'onedl-mmsegmentation'), '1.0.0', '2'),
}

# Registry scopes of the libraries with detectors and segmentors, in the order in
# which they are searched for a name that is not in the active scope.
SCOPES = ('mmdet', 'mmseg')

# Tested versions to install, by stack and import name.
REQUIREMENTS = {
    'stock': {
        'mmengine': 'mmengine==0.10.7',
        'mmcv': 'mmcv==2.1.0',
        'mmdet': 'mmdet==3.3.0',
        'mmseg': 'mmsegmentation==1.2.2',
    },
    'onedl': {
        'mmengine': 'onedl-mmengine>=0.10.9',
        'mmcv': 'onedl-mmcv>=2.3.6',
        'mmdet': 'onedl-mmdetection>=3.5.1',
        'mmseg': 'onedl-mmsegmentation>=1.4.2',
    },
}
# Stock mmengine imports pkg_resources, which newer setuptools lack.
SETUPTOOLS = 'setuptools<81'
# mmseg imports ftfy and regex without requiring them.
BESIDES = {
    'stock': ('ftfy', 'regex', SETUPTOOLS),
    'onedl': ('ftfy', 'regex'),
}
# For the test environment. Plain "torch" may resolve to a build with several GB
# of CUDA libraries.
TORCH = 'torch==2.13.0'
BUILT = {'stock': REQUIREMENTS['stock']['mmcv'], 'onedl': 'onedl-mmcv==2.3.6'}
BUILD_TOOLS = {'stock': SETUPTOOLS, 'onedl': 'setuptools'}


def stack_of(distribution: str) -> str:
    """Return the stack of a distribution: ``stock`` or ``onedl``."""
    return 'onedl' if distribution.startswith('onedl-') else 'stock'
