"""Restoration of images: dense prediction of pixels."""
