_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# There are no public weights of the hybrids. To start from the convolutions of a
# converted ResNet (see the README):
# init_cfg=dict(type='Pretrained', checkpoint='checkpoints/lambda_r50.pth')
model = dict(pretrained=None, backbone=dict(type='LambdaResNet'))
