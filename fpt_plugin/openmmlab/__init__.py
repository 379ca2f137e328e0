"""What knows the OpenMMLab libraries: pins, mends, registries, models from configs.

Importing this package imports none of the libraries; its modules do.
"""
