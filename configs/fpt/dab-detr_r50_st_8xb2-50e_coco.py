_base_ = 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# A single level, as in Conditional DETR.
model = dict(
    neck=dict(
        type='SelfTransformerNeck',
        pyramid=dict(type='ChannelMapper'),
        num_levels=1))
