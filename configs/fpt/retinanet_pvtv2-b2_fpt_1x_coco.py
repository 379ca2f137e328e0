_base_ = 'mmdet::pvt/retinanet_pvtv2-b2_fpn_1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(neck=dict(type='FPT'))
