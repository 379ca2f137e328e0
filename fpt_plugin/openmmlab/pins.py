"""Which distributions carry the hosts; known without importing any of them."""

# By import name: the distributions, then the versions that are known to fit,
# those that have mmengine's registries and configs.
LIBRARIES = {
    'mmengine': (('mmengine', 'mmengine-lite', 'onedl-mmengine'), '0.7.1', '1'),
    'mmcv': (('mmcv', 'mmcv-lite', 'onedl-mmcv'), '2.0.0', '3'),
    'mmdet': (('mmdet', 'onedl-mmdetection'), '3.0.0', '4'),
    'mmseg': (('mmsegmentation', 'onedl-mmsegmentation'), '1.0.0', '2'),
}

# The registry scopes of the libraries that have detectors and segmentors, in the
# order in which a name is looked up that the active scope does not know.
SCOPES = ('mmdet', 'mmseg')

# What to install where nothing else is wanted: the versions of setup.py.
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


def stack_of(distribution: str) -> str:
    """The stack that a distribution belongs to: ``stock`` or ``onedl``."""
    return 'onedl' if distribution.startswith('onedl-') else 'stock'
