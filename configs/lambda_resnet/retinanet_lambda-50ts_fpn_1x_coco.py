_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# ImageNet weights of timm's lambda_resnet50ts, with the mean and std of mmdet's
# ResNets. Write the file with
# python tools/convert_weights.py timm-lambda IN \
#     checkpoints/lambda_resnet50ts.pth --arch 50ts
model = dict(
    backbone=dict(
        type='LambdaResNet',
        depth='50ts',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/lambda_resnet50ts.pth')))
