"""Registered backbones."""

from .lambda_resnet import LambdaResNet

__all__ = ['LambdaResNet']
