_base_ = [
    'mmseg::fcn/fcn_r101-d8_4xb4-40k_voc12aug-512x512.py',
    '_base_/fcn_ufp.py'
]
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = _base_.fcn_ufp_fpt
