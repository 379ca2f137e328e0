_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# Start at the AP of the plain detector and train its weights at a low learning
# rate; FPT's new parameters learn at the usual rate.
model = dict(neck=dict(type='FPT'))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'  # noqa: E501

new = dict(lr_mult=10.)
optim_wrapper = dict(
    optimizer=dict(lr=0.002),
    paramwise_cfg=dict(
        custom_keys=dict(
            self_transformers=new,
            grounding_transformers=new,
            rendering_transformers=new,
            fusions=new)))
max_epochs = 4
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[3],
        gamma=0.1)
]
