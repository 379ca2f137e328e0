_base_ = 'deformable-detr_mobilenet-v2_fpt_four-tiles.py'

# FPT stands where the encoder stood: the decoder reads its maps.
model = dict(type='PyramidMemoryDETR', encoder=None)
