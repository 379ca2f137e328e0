_base_ = '../fpt/faster-rcnn_r50_fpt_1x_coco.py'

load_from = 'checkpoints/restoration_faster-rcnn_r50_fpt.pth'
