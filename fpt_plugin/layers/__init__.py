"""One module of a paper a file, on torch, mmengine's BaseModule and mmcv.cnn."""

from .grounding_transformer import GroundingTransformer
from .lambda_layer import LambdaLayer
from .local_grounding_transformer import LocalGroundingTransformer
from .rendering_transformer import RenderingTransformer
from .self_transformer import SelfTransformer

__all__ = [
    'SelfTransformer', 'GroundingTransformer', 'LocalGroundingTransformer',
    'RenderingTransformer', 'LambdaLayer'
]
