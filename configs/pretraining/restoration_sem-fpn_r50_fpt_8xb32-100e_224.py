_base_ = '_base_/restoration.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# Backbone, neck and head of Semantic FPN.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='RestorationPretrainer',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='mmseg.ResNetV1c',
        depth=50,
        norm_cfg=norm_cfg,
        norm_eval=False,
        contract_dilation=True,
        init_cfg=dict(
            type='Pretrained', checkpoint='open-mmlab://resnet50_v1c')),
    neck=dict(
        type='FPT',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=4),
    decode_head=dict(
        type='mmseg.FPNHead',
        in_channels=[256] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False))
