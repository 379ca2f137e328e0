_base_ = [
    'faster-rcnn_mobilenet-v2_fpt_trees.py', '../pretraining/_base_/swin.py'
]

# The quickstart's detector with the small Swin Transformer that
# `bash tools/quickstart.sh --task pretraining` trains.
model = dict(
    backbone=dict(
        _delete_=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/quickstart-pretraining/backbone.pth'),
        **_base_.swin_mini),
    neck=dict(in_channels=[32, 64, 128, 256]))
