_base_ = [
    'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    '_base_/transformers.py'
]
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.pvtv2_b0),
    neck=dict(type='FPT', in_channels=[32, 64, 160, 256]))
optim_wrapper = _base_.pvt_optim_wrapper
param_scheduler = [_base_.warmup, dict(end=80000, **_base_.decay)]
