_base_ = 'mmseg::_base_/default_runtime.py'
custom_imports = dict(
    imports=['fpt_plugin', 'fpt_plugin.commands.study.camvid'],
    allow_failed_imports=False)

# Street scenes at 320x240. Choices are made on the sequence 0001TP, which is
# held out of train; what is reported is val, 101 neighbouring frames of a
# sequence that train has a part of.
study = dict(
    title='CamVid val: mIoU in %',
    metric='mIoU',
    baseline='fpn',
    shape=(240, 320),
    rows=dict(
        fpn=dict(),
        pafpn=dict(model=dict(neck=dict(type='mmdet.PAFPN'))),
        bup=dict(model=dict(neck=dict(type='BottomUpPyramid'))),
        light=dict(model=dict(neck=dict(type='FPT', preset='light'))),
        default=dict(model=dict(neck=dict(type='FPT'))),
        full=dict(model=dict(neck=dict(type='FPT', preset='full'))),
        paper=dict(model=dict(neck=dict(type='FPT', preset='paper')))))

size = (240, 320)
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=11,
        size=size),
    backbone=dict(
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        frozen_stages=2,
        norm_eval=True,
        norm_cfg=norm_cfg,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/pretrained/mobilenet_v2_mmseg.pth')),
    neck=dict(
        type='FPN',
        in_channels=[24, 32, 96, 320],
        out_channels=128,
        num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[128] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=64,
        dropout_ratio=0.1,
        num_classes=11,
        ignore_index=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(320, 240),
        ratio_range=(1.0, 1.5),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='PackSegInputs')
]
data_root = 'data/camvid'
train_folders = dict(img_path='train', seg_map_path='trainannot')
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CamVid',
        data_root=data_root,
        data_prefix=train_folders,
        sequences=['0006R0', '0016E5'],
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CamVid',
        data_root=data_root,
        data_prefix=train_folders,
        sequences=['0001TP'],
        pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        type='CamVid',
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='valannot'),
        pipeline=test_pipeline))
val_evaluator = dict(type='IoUMetric', ignore_index=11, iou_metrics=['mIoU'])
test_evaluator = val_evaluator

max_epochs = 12
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bypass_duplicate=True),
    clip_grad=dict(max_norm=10, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=0,
        T_max=max_epochs,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=True),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'))
log_processor = dict(by_epoch=True)
