_base_ = 'restoration_faster-rcnn_mobilenet-v2_fpt_1xb8-2k_trees.py'

# Train only FPT's branches, for a detector that was trained with FPN.
model = dict(keep_identity=True)
load_from = 'checkpoints/faster-rcnn_mobilenet-v2_fpn_trees.pth'
