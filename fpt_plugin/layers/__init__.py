"""The layers of the papers, one in each file."""

from .grounding_transformer import GroundingTransformer
from .lambda_layer import LambdaLayer
from .local_grounding_transformer import LocalGroundingTransformer
from .rendering_transformer import RenderingTransformer
from .self_transformer import SelfTransformer

__all__ = [
    'SelfTransformer', 'GroundingTransformer', 'LocalGroundingTransformer',
    'RenderingTransformer', 'LambdaLayer'
]
