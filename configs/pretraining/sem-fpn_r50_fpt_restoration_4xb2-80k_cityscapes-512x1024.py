_base_ = '../fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py'

load_from = 'checkpoints/restoration_sem-fpn_r50_fpt.pth'
