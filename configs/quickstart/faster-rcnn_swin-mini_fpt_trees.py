_base_ = [
    'faster-rcnn_mobilenet-v2_fpt_trees.py', '../pretraining/_base_/swin.py'
]

# The quickstart's detector with the small Swin Transformer of
# `bash tools/quickstart.sh --task pretraining`.
model = dict(
    backbone=dict(
        _delete_=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/quickstart-pretraining/backbone.pth'),
        **_base_.swin_mini),
    neck=dict(in_channels=[32, 64, 128, 256]))
