_base_ = 'mmdet::pvt/retinanet_pvt-s_fpn_1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(neck=dict(type='FPT'))
