_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# There are no public weights of the hybrids. To start from the convolutions of a
# converted ResNet (see the README):
# init_cfg=dict(type='Pretrained', checkpoint='checkpoints/lambda_r50.pth')
model = dict(pretrained=None, backbone=dict(type='LambdaResNet'))
