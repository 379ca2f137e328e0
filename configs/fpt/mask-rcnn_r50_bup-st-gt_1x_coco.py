_base_ = 'mask-rcnn_r50_fpt-paper_1x_coco.py'

model = dict(neck=dict(rendering_transformer=None))
