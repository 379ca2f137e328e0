_base_ = [
    'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py',
    '_base_/transformers.py'
]
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# UPerHead has its own top-down path, so FPT wraps a pyramid without one.
model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.swin_t),
    neck=dict(
        type='FPT',
        in_channels=[96, 192, 384, 768],
        out_channels=256,
        num_outs=4,
        pyramid=dict(type='BottomUpPyramid')),
    decode_head=dict(in_channels=[256] * 4),
    auxiliary_head=dict(in_channels=256))
optim_wrapper = _base_.swin_optim_wrapper
param_scheduler = [_base_.warmup, dict(end=80000, **_base_.decay)]
