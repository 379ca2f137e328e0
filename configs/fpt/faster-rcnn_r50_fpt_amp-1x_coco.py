_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_amp-1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(neck=dict(type='FPT'))
