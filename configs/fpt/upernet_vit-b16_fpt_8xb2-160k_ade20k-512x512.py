_base_ = 'mmseg::vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# Resample the maps of four layers to strides of 4 to 32, then reduce them to 256
# channels. Test images are padded at the right and bottom to a multiple of 32.
model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    # mmseg's default ignores the bias of the checkpoints
    backbone=dict(patch_bias=True),
    neck=dict(
        _delete_=True,
        type='FPT',
        in_channels=[768] * 4,
        out_channels=256,
        num_outs=4,
        num_levels=4,
        pyramid=[
            dict(type='Feature2Pyramid', embed_dim=768),
            dict(
                type='BottomUpPyramid',
                in_channels=[768] * 4,
                out_channels=256)
        ]),
    decode_head=dict(in_channels=[256] * 4),
    auxiliary_head=dict(in_channels=256))
