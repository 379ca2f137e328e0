"""Attention as functions of tensors; needs torch and nothing else."""

from .attention import mixture_attention
from .local_attention import local_mixture_attention

__all__ = ['mixture_attention', 'local_mixture_attention']
