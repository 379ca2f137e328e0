_base_ = 'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# As in deformable-detr_r50_fpt_16xb2-50e_coco.py.
model = dict(
    neck=dict(
        type='FPT', pyramid=dict(type='ChannelMapper'), num_levels=3))
