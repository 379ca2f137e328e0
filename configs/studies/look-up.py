_base_ = 'mmseg::_base_/default_runtime.py'
custom_imports = dict(
    imports=['fpt_plugin', 'fpt_plugin.commands.study.look_up'],
    allow_failed_imports=False)

# Synthetic images: the label of a small disc is the texture of the distant patch
# with the same colour. Without long-range layers a network guesses (accuracy 0.5).
study = dict(
    title='Look-up: accuracy of the discs in % (chance: 50)',
    metric='aAcc',
    baseline='fpn',
    shape=(192, 192),
    rows=dict(
        fpn=dict(),
        pafpn=dict(model=dict(neck=dict(type='mmdet.PAFPN'))),
        fpn_deeper=dict(model=dict(backbone=dict(deeper=6))),
        fpn_lambda=dict(model=dict(backbone=dict(lambda_layers=True))),
        bup=dict(model=dict(neck=dict(type='BottomUpPyramid'))),
        st=dict(model=dict(neck=dict(type='SelfTransformerNeck'))),
        gt=dict(model=dict(neck=dict(type='GroundingTransformerNeck'))),
        rt=dict(model=dict(neck=dict(type='RenderingTransformerNeck'))),
        light=dict(model=dict(neck=dict(type='FPT', preset='light'))),
        default=dict(model=dict(neck=dict(type='FPT'))),
        full=dict(model=dict(neck=dict(type='FPT', preset='full'))),
        paper=dict(model=dict(neck=dict(type='FPT', preset='paper')))))

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[128.] * 3,
        std=[64.] * 3,
        size=(192, 192),
        seg_pad_val=255),
    backbone=dict(type='LookUpBackbone'),
    neck=dict(
        type='FPN',
        in_channels=[32, 48, 64, 64],
        out_channels=64,
        num_outs=4),
    # No 3x3 convolutions, which would enlarge the receptive field.
    decode_head=dict(
        type='FCNHead',
        in_channels=[64] * 4,
        in_index=[0, 1, 2, 3],
        input_transform='resize_concat',
        channels=64,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=2,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))

pipeline = [dict(type='DrawLookUp', size=192), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='LookUp', first=1_000_000, length=3840, pipeline=pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='LookUp', first=0, length=200, pipeline=pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        type='LookUp', first=500_000, length=200, pipeline=pipeline))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

iterations = 480
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=iterations, val_interval=120)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.),
    clip_grad=dict(max_norm=10, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=48),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=48,
        T_max=iterations - 48,
        end=iterations,
        by_epoch=False)
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=120, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'))
log_processor = dict(by_epoch=False)
