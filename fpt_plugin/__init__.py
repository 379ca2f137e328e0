"""FPT necks and LambdaResNet backbones for MMDetection and MMSegmentation.

Importing the package registers its modules with mmengine, so that a config
finds them by ``custom_imports=dict(imports=['fpt_plugin'])`` or by a dotted
type such as ``'fpt_plugin.FPT'``. Where only torch is installed,
:mod:`fpt_plugin.functional` still works.
"""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from .version import __version__

__all__ = ['__version__']


def _is_doctor() -> bool:
    """Return whether the doctor runs: it must start even where imports fail."""
    program, *arguments = sys.argv or ['']
    if program == '-m':  # python -m PACKAGE, while it imports the package
        command = getattr(sys, 'orig_argv', [])  # since Python 3.10
        return arguments[:1] == ['doctor'] and (
            not command or 'fpt_plugin' in command)
    package = Path(__file__).resolve().parent
    tools = [package.parent / 'tools', package / '.mim' / 'tools']
    return Path(program).resolve() in [
        (folder / 'doctor.py').resolve() for folder in tools]


if not _is_doctor() and all(map(find_spec, ('mmengine', 'mmcv'))):
    with warnings.catch_warnings():
        # Raised by stock mmengine; the requirements have setuptools<81 for it.
        warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
        import mmengine.utils  # noqa: F401

    from .backbones import LambdaResNet
    from .detectors import PyramidMemoryDETR
    from .engine import (
        GraftOptimWrapperConstructor,
        PyramidLevelCheckHook,
        ReseedHook,
        SegLabelCheckHook,
        TrainGraftOnlyHook,
        WholeCheckpointHook,
    )
    from .layers import (
        GroundingTransformer,
        LambdaLayer,
        LocalGroundingTransformer,
        RenderingTransformer,
        SelfTransformer,
    )
    from .necks import (
        FPT,
        UFP,
        BottomUpPyramid,
        GroundingTransformerNeck,
        RenderingTransformerNeck,
        SelfTransformerNeck,
    )
    from .openmmlab import fixes
    from .pretraining import (
        BitsPerPixel,
        FitPaletteHook,
        GreenMIM,
        GreenMIMDecoder,
        PackImage,
        PixelGPT,
        RandomResizedCrop,
        ReconstructionError,
        ReconstructionHook,
        RestorationPretrainer,
        SimMIM,
        UnlabelledImages,
    )
    from .restoration import (
        IPT,
        PSNR,
        SSIM,
        TTSR,
        CropWithReference,
        Degrade,
        LoadCleanImage,
        LoadReference,
        PairedImages,
        ReferencePairs,
    )

    fixes.apply()
    __all__ += [
        'FPT', 'SelfTransformerNeck', 'GroundingTransformerNeck',
        'RenderingTransformerNeck', 'BottomUpPyramid', 'UFP', 'SelfTransformer',
        'GroundingTransformer', 'LocalGroundingTransformer',
        'RenderingTransformer', 'LambdaLayer', 'LambdaResNet',
        'PyramidMemoryDETR', 'SegLabelCheckHook', 'PyramidLevelCheckHook',
        'TrainGraftOnlyHook', 'ReseedHook', 'WholeCheckpointHook',
        'GraftOptimWrapperConstructor', 'GreenMIM', 'SimMIM', 'GreenMIMDecoder',
        'UnlabelledImages', 'RandomResizedCrop', 'PackImage',
        'ReconstructionError', 'ReconstructionHook', 'Degrade', 'PSNR', 'SSIM', 'IPT',
        'TTSR', 'PairedImages', 'LoadCleanImage',
        'ReferencePairs', 'LoadReference', 'CropWithReference', 'RestorationPretrainer',
        'PixelGPT', 'FitPaletteHook', 'BitsPerPixel'
    ]
else:

    def __getattr__(name: str):
        """Raise an error that names the missing libraries."""
        raise AttributeError(
            f'module fpt_plugin has no attribute {name!r}: its layers, '
            'necks and backbones need mmengine and mmcv, and one of them is '
            'not installed. '
            'fpt_plugin.functional needs only torch.')
