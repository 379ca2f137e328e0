_base_ = '_base_/ipt.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)
