# Images without labels as sequences of colours: crops, area-averaged to a few pixels,
# and one million steps of 128 images. data_root may hold folders.
default_scope = 'mmengine'
data_root = 'data/images/'

size = 32
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=size,
        area=(0.3, 1.),
        interpolation='area',
        min_side=size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackImage')
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='UnlabelledImages',
        data_root=data_root + 'train',
        pipeline=pipeline))

# The square in the middle of other images. tools/test.py prints bits per pixel of
# the model and of counts of colours in the training images.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='Resize', scale=(10000, size), keep_ratio=True, interpolation='area'),
    dict(type='CenterCrop', crop_size=size),
    dict(type='PackImage')
]
test_dataloader = dict(
    batch_size=32,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='UnlabelledImages',
        data_root=data_root + 'val',
        pipeline=test_pipeline))
test_evaluator = dict(
    type='BitsPerPixel', train_dataset=train_dataloader['dataset'])
test_cfg = dict(type='TestLoop')

model = dict(type='PixelGPT', size='S', image_size=size)

# No weight decay and no dropout.
auto_scale_lr = dict(enable=False, base_batch_size=128)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=3e-3, betas=(0.9, 0.95)),
    clip_grad=dict(max_norm=1.))

# Of warm-up an epoch of ImageNet.
iterations, warmup = 1_000_000, 10_000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=warmup),
    dict(
        type='CosineAnnealingLR',
        T_max=iterations - warmup,
        by_epoch=False,
        begin=warmup,
        end=iterations)
]

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=10_000, max_keep_ckpts=2))
custom_hooks = [
    dict(type='FitPaletteHook', images=10_000),
    dict(type='ReconstructionHook', interval=10_000),
    dict(type='ReseedHook')
]
log_processor = dict(by_epoch=False)
