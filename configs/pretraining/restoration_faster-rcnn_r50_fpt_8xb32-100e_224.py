_base_ = '_base_/restoration.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# Backbone and neck of Faster R-CNN.
model = dict(
    type='RestorationPretrainer',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='mmdet.ResNet',
        depth=50,
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(
        type='FPT',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=5))
