_base_ = '_base_/restoration_mini.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# Backbone, neck and head of the quickstart's segmentor, on its training images.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='RestorationPretrainer',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='mmseg.MobileNetV2',
        out_indices=(1, 2, 4, 6),
        frozen_stages=2,
        norm_eval=True,
        norm_cfg=norm_cfg,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/pretrained/mobilenet_v2_mmseg.pth')),
    neck=dict(
        type='FPT',
        in_channels=[24, 32, 96, 320],
        out_channels=128,
        num_outs=4),
    decode_head=dict(
        type='mmseg.FPNHead',
        in_channels=[128] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=64,
        num_classes=4,
        norm_cfg=norm_cfg,
        align_corners=False))

data_root = 'data/nuclei/images/'
train_dataloader = dict(dataset=dict(data_root=data_root + 'train'))
val_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(dataset, data_root=data_root + 'val')
            for dataset in _base_.val_dataloader.dataset.datasets
        ]))
test_dataloader = val_dataloader
