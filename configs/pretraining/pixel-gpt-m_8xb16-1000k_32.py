_base_ = '_base_/pixel_gpt.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(size='M')
