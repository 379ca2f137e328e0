_base_ = 'faster-rcnn_mobilenet-v2_fpt_trees.py'

# A test of learning: a small Deformable DETR on four tiles, one of each photograph,
# the same four for training and evaluation. The result shows that loss and gradients
# work; it does not show generalisation.
model = dict(
    _delete_=True,
    type='DeformableDETR',
    num_queries=100,
    num_feature_levels=4,
    with_box_refine=True,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict(
        type='MobileNetV2',
        out_indices=(2, 4, 7),
        frozen_stages=2,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint='data/pretrained/mobilenet_v2.pth')),
    neck=dict(
        type='ChannelMapper',
        in_channels=[32, 96, 1280],
        kernel_size=1,
        out_channels=128,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=4),
    encoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128, dropout=0., batch_first=True),
            ffn_cfg=dict(
                embed_dims=128, feedforward_channels=512, ffn_drop=0.))),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=128, num_heads=8, dropout=0., batch_first=True),
            cross_attn_cfg=dict(embed_dims=128, dropout=0., batch_first=True),
            ffn_cfg=dict(
                embed_dims=128, feedforward_channels=512, ffn_drop=0.)),
        post_norm_cfg=None),
    positional_encoding=dict(num_feats=64, normalize=True, offset=-0.5),
    bbox_head=dict(
        type='DeformableDETRHead',
        num_classes=1,
        embed_dims=128,
        sync_cls_avg_factor=True,
        loss_cls=dict(
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0)
            ])),
    test_cfg=dict(max_per_img=100))

# One tile of each photograph, without augmentation.
tiles = [0, 1, 3, 10]
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale_factor=1.0),  # the heads need the factor
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor', 'instances'))
]
train_dataloader = dict(
    batch_size=4, dataset=dict(indices=tiles, pipeline=pipeline))
val_dataloader = dict(
    dataset=dict(
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        indices=tiles,
        pipeline=pipeline))
test_dataloader = val_dataloader
# without an annotation file, the metric uses the boxes of the tested tiles
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator

# As Deformable DETR: a low learning rate for offsets and reference points.
slow = dict(lr_mult=0.1)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=slow, sampling_offsets=slow, reference_points=slow)))
# An epoch is one step here.
max_epochs = 200
train_cfg = dict(max_epochs=max_epochs, val_interval=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=0,
        T_max=max_epochs,
        end=max_epochs,
        by_epoch=True)
]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=50))
log_processor = dict(window_size=1)  # log the loss of each step
