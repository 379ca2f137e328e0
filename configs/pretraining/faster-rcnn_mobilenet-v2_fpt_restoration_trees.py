_base_ = '../quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'

load_from = 'checkpoints/restoration_faster-rcnn_mobilenet-v2_fpt.pth'
