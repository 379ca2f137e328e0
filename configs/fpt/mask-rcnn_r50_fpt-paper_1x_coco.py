_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# As in the paper, except for the scale of the scores and the schedule: all keys,
# full width, a pyramid without a top-down path.
model = dict(neck=dict(type='FPT', preset='paper'))
