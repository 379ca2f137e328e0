_base_ = 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# A single map has no other levels to look at: the Self-Transformer is what FPT
# has for it.
model = dict(
    neck=dict(
        type='SelfTransformerNeck',
        pyramid=dict(type='ChannelMapper'),
        num_levels=1))
