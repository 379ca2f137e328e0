_base_ = [
    'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
    '_base_/transformers.py'
]
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.pvtv2_b2),
    neck=dict(type='FPT', in_channels=[64, 128, 320, 512]))
optim_wrapper = _base_.pvt_optim_wrapper
param_scheduler = [_base_.warmup, dict(end=160000, **_base_.decay)]
