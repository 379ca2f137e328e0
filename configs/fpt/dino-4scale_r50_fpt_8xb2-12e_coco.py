_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# Transform the three maps of the backbone, as in Deformable DETR.
model = dict(
    neck=dict(
        type='FPT', pyramid=dict(type='ChannelMapper'), num_levels=3))
