_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# There are no public weights of the hybrids: all stages are trained, with SyncBN.
# To start from the convolutions of a converted ResNet (see the README):
# init_cfg=dict(type='Pretrained', checkpoint='checkpoints/lambda_r50.pth')
model = dict(
    backbone=dict(
        _delete_=True,
        type='LambdaResNet',
        depth=50,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False))
