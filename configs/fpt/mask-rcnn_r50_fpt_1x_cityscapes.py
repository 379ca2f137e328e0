_base_ = 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(neck=dict(type='FPT'))
