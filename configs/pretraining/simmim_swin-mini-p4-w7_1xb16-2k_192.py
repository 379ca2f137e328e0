_base_ = 'greenmim_swin-mini-p4-w7_1xb16-2k_192.py'

model = dict(
    _delete_=True,
    type='SimMIM',
    data_preprocessor=_base_.data_preprocessor,
    backbone=_base_.swin_mini)
