_base_ = 'mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(neck=dict(type='FPT'))
