_base_ = [
    'upernet_vit-b16_fpt_8xb2-160k_ade20k-512x512.py',
    '_base_/fpn_head.py'
]

model = dict(
    decode_head=dict(_delete_=True, num_classes=150, **_base_.fpn_head),
    auxiliary_head=None)
