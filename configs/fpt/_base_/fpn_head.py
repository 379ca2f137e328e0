# The head of mmseg's Semantic FPN.
fpn_head = dict(
    type='FPNHead',
    in_channels=[256] * 4,
    in_index=[0, 1, 2, 3],
    feature_strides=[4, 8, 16, 32],
    channels=128,
    dropout_ratio=0.1,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    align_corners=False,
    loss_decode=dict(
        type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0))
