_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# FPT replaces the encoder: its maps are the memory of the decoder. It transforms all
# four maps, with all branches, because it is the only connection between the levels.
model = dict(
    type='PyramidMemoryDETR',
    encoder=None,
    neck=dict(
        type='FPT',
        preset='full',
        pyramid=dict(type='ChannelMapper'),
        num_levels=4))
