_base_ = 'fcn_r101-d8_ufp-fpt_4xb2-80k_cityscapes-769x769.py'

model = dict(neck=dict(self_transformer=None, rendering_transformer=None))
