_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py', 'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py', '_base_/lip_473x473.py',
    '_base_/fcn_ufp.py'
]
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

heads = dict(num_classes=20, align_corners=True)
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    neck=_base_.fcn_ufp_fpt.neck,
    decode_head=dict(_base_.fcn_ufp_fpt.decode_head, **heads),
    auxiliary_head=dict(_base_.fcn_ufp_fpt.auxiliary_head, **heads))
