_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# FPT stands where the encoder stood: its maps are the memory of the decoder.
# All four are transformed, as the encoder did, and each reads the others: there is
# no path between levels besides.
model = dict(
    type='PyramidMemoryDETR',
    encoder=None,
    neck=dict(
        type='FPT',
        preset='full',
        pyramid=dict(type='ChannelMapper'),
        num_levels=4))
