_base_ = 'faster-rcnn_r50_fpt_finetune-4e_coco.py'

# Backbone and pyramid are frozen; FPT and the heads are trained.
model = dict(
    backbone=dict(frozen_stages=4), neck=dict(freeze_pyramid=True))
