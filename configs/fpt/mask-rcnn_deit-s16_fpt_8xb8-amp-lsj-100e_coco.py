_base_ = 'mask-rcnn_vit-b16_fpt_8xb8-amp-lsj-100e_coco.py'

model = dict(
    backbone=dict(
        embed_dims=384,
        num_heads=6,
        init_cfg=dict(checkpoint='pretrain/deit_small_patch16_224-cd65a155.pth')),
    neck=dict(
        in_channels=[384] * 4,
        pyramid=[
            dict(
                type='mmseg.Feature2Pyramid',
                embed_dim=384,
                norm_cfg=dict(type='GN', num_groups=32)),
            dict(
                type='BottomUpPyramid',
                in_channels=[384] * 4,
                out_channels=256,
                num_outs=5,
                norm_cfg=dict(type='GN', num_groups=32))
        ]))
