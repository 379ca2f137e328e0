_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'  # noqa: E501
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# UPerHead has its own top-down path, so FPT wraps a pyramid without one.
model = dict(
    neck=dict(
        type='FPT',
        in_channels=[96, 192, 384, 768],
        out_channels=256,
        num_outs=4,
        pyramid=dict(type='BottomUpPyramid')),
    decode_head=dict(in_channels=[256] * 4),
    auxiliary_head=dict(in_channels=256))
