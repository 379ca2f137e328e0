_base_ = 'deformable-detr_mobilenet-v2_fpt_four-tiles.py'

# FPT stands where the encoder stood: the decoder reads its maps, and there is no
# path between levels besides.
model = dict(
    type='PyramidMemoryDETR', encoder=None, neck=dict(preset='full'))
