_base_ = 'deformable-detr_mobilenet-v2_four-tiles.py'

# FPT over the mapper: the encoder reads the transformed maps.
model = dict(
    neck=dict(
        type='FPT', pyramid=dict(type='ChannelMapper'), num_levels=4))
