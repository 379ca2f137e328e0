_base_ = 'restoration_faster-rcnn_mobilenet-v2_fpt_1xb8-2k_trees.py'

# Only FPT's branches, for a detector that has been trained with FPN.
model = dict(keep_identity=True)
load_from = 'checkpoints/faster-rcnn_mobilenet-v2_fpn_trees.pth'
