_base_ = ['_base_/images.py', '_base_/swin.py']
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(
    type='GreenMIM',
    data_preprocessor=_base_.data_preprocessor,
    backbone=_base_.swin_b)
