_base_ = 'mmseg::sem_fpn/fpn_r101_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# mmseg's file of that name builds a ResNet-50.
model = dict(
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    neck=dict(type='FPT'))
