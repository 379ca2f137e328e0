_base_ = [
    'mmseg::fcn/fcn_r101-d8_4xb4-160k_ade20k-512x512.py',
    '_base_/fcn_ufp.py'
]
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = _base_.fcn_ufp_fpt
# Initial values, not confirmed to be the paper's.
optim_wrapper = dict(optimizer=dict(lr=0.02, weight_decay=0.0001))
