_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_8xb8-amp-lsj-200e_coco.py'
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
# 25 times 8 epochs: mmdet's file of this name repeats the images 4 times.
train_dataloader = dict(dataset=dict(times=8))
