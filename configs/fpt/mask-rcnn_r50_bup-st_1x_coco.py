_base_ = 'mask-rcnn_r50_fpt-paper_1x_coco.py'

model = dict(
    neck=dict(grounding_transformer=None, rendering_transformer=None))
