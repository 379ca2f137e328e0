_base_ = 'deformable-detr_mobilenet-v2_fpt_four-tiles.py'

# FPT replaces the encoder: the decoder reads its maps, and FPT is the only
# connection between the levels.
model = dict(
    type='PyramidMemoryDETR', encoder=None, neck=dict(preset='full'))
