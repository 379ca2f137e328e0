_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# A lambda branch in every block of C4 and C5, with a gate that starts at zero: the
# ResNet's weights load as usual, and its features do not change. The ResNet's batch
# norms are in evaluation mode, so the new layers have group norms.
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(
                type='LambdaLayer',
                residual=True,
                norm_cfg=dict(type='GN', num_groups=4)),
            stages=(False, False, True, True),
            position='after_conv2')
    ]))
