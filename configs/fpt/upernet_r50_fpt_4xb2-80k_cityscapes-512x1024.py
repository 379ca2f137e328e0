_base_ = 'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# UPerHead has its own top-down path, so FPT wraps a pyramid without one.
model = dict(
    neck=dict(
        type='FPT',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=4,
        pyramid=dict(type='BottomUpPyramid')),
    decode_head=dict(in_channels=[256] * 4),
    auxiliary_head=dict(in_channels=256))
