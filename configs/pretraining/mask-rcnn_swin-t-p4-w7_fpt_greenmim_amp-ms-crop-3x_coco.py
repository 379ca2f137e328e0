_base_ = '../fpt/mask-rcnn_swin-t-p4-w7_fpt_amp-ms-crop-3x_coco.py'

# convert_weights pretrained writes weights in mmdet's own format.
model = dict(
    backbone=dict(
        convert_weights=False,
        init_cfg=dict(checkpoint='checkpoints/greenmim_swin-t_mask-rcnn.pth')))
