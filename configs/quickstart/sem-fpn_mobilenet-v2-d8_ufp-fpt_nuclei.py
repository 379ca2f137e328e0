_base_ = 'sem-fpn_mobilenet-v2_fpt_nuclei.py'

# A backbone that keeps an eighth of the image's size, as the paper's segmentors
# have it, large kernels instead of smaller maps, and grounding in windows.
model = dict(
    backbone=dict(
        strides=(1, 2, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 2, 4, 4)),
    neck=dict(
        pyramid=dict(type='UFP'),
        grounding_transformer=dict(
            type='LocalGroundingTransformer', window=5)),
    decode_head=dict(feature_strides=[8, 8, 8, 8]))
