_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# FPT transforms the three maps of the backbone. The fourth, which the mapper makes
# of the last one, passes through. The encoder reads all four.
model = dict(
    neck=dict(
        type='FPT', pyramid=dict(type='ChannelMapper'), num_levels=3))
