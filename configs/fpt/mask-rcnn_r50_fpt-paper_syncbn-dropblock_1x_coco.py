_base_ = 'mask-rcnn_r50_fpt-paper_1x_coco.py'

model = dict(
    neck=dict(
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        fusion_norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_block=dict(type='DropBlock', drop_prob=0.1, block_size=5)))
