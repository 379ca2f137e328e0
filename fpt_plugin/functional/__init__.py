"""Tensors in, tensors out: the operations of the papers, on torch alone."""

from .attention import mixture_attention

__all__ = ['mixture_attention']
