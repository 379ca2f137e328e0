_base_ = 'mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(neck=dict(type='FPT'))
