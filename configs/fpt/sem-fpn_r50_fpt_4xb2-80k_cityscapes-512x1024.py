_base_ = 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(neck=dict(type='FPT'))
