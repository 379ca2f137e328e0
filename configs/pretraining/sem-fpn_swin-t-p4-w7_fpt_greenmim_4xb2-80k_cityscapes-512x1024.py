_base_ = '../fpt/sem-fpn_swin-t-p4-w7_fpt_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='checkpoints/greenmim_swin-t_sem-fpn.pth')))
