_base_ = [
    'mmseg::fcn/fcn_r101-d8_4xb2-80k_cityscapes-769x769.py',
    '_base_/fcn_ufp.py'
]
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = _base_.fcn_ufp
