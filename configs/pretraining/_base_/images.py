# Data, schedule and hooks of pre-training on a folder of images without labels:
# 800 epochs with 2048 images per step. data_root may have subfolders.
default_scope = 'mmengine'
data_root = 'data/images'

size = 224
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=size, area=(0.2, 1.)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackImage')
]
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='UnlabelledImages', data_root=data_root, pipeline=pipeline))

# tools/test.py measures the error of masked squares on held-out images.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(size, size)),
    dict(type='PackImage')
]
test_dataloader = dict(
    batch_size=32,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='UnlabelledImages', data_root=data_root, pipeline=test_pipeline))
test_evaluator = dict(type='ReconstructionError')
test_cfg = dict(type='TestLoop')

# Mean and standard deviation of ImageNet, as in the detectors and segmentors.
data_preprocessor = dict(
    type='ImgDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True)

# Learning rate 1.5e-4 per 256 images of a step. No weight decay for biases and norms
# (which have one dimension), bias tables, positions and mask tokens.
auto_scale_lr = dict(enable=False, base_batch_size=2048)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=1.2e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(
        flat_decay_mult=0.,
        custom_keys=dict(
            relative_position_bias_table=dict(decay_mult=0.),
            absolute_pos_embed=dict(decay_mult=0.),
            mask_token=dict(decay_mult=0.))),
    clip_grad=dict(max_norm=5.))

epochs, warmup = 800, 40
train_cfg = dict(by_epoch=True, max_epochs=epochs)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        end=warmup,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs - warmup,
        by_epoch=True,
        begin=warmup,
        end=epochs,
        convert_to_iter_based=True)
]

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=20, max_keep_ckpts=2))
# With randomness.seed and without persistent workers, a resumed training draws the same
# masks and crops as an uninterrupted one.
custom_hooks = [
    dict(type='ReconstructionHook', interval=1000),
    dict(type='ReseedHook')
]
