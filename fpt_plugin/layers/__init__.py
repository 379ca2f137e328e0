"""One module of a paper a file, on torch and mmengine's BaseModule."""

from .grounding_transformer import GroundingTransformer
from .local_grounding_transformer import LocalGroundingTransformer
from .rendering_transformer import RenderingTransformer
from .self_transformer import SelfTransformer

__all__ = [
    'SelfTransformer', 'GroundingTransformer', 'LocalGroundingTransformer',
    'RenderingTransformer'
]
