_base_ = 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# There is only one level, so FPT has only the Self-Transformer.
model = dict(
    neck=dict(
        type='SelfTransformerNeck',
        pyramid=dict(type='ChannelMapper'),
        num_levels=1))
