"""Code specific to OpenMMLab: versions, fixes, registries, models from configs.

Importing this package imports no OpenMMLab library; its modules do.
"""
