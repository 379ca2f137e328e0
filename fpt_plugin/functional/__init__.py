"""Attention as functions of tensors; needs torch and nothing else."""

from .attention import mixture_attention
from .lambdas import content_lambda, position_lambda
from .local_attention import local_mixture_attention

__all__ = [
    'mixture_attention', 'local_mixture_attention', 'content_lambda',
    'position_lambda'
]
