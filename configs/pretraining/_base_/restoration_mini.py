# 2000 steps with small images, on a CPU. Each validation image is restored from
# each degradation, and compared with the unrestored image.
_base_ = 'restoration.py'

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=128, area=(0.1, 0.5)),
    # Microscope and aerial images have no preferred orientation.
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='Degrade', enlarge=True),
    dict(type='PackImage')
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(pipeline=pipeline))

val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='UnlabelledImages',
                data_root='data/images',
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='Degrade', tasks=task, enlarge=True, seed=0),
                    dict(type='PackImage')
                ]) for task in ('noise30', 'noise50', 'rain', 'sr2', 'sr3', 'sr4')
        ]))
val_evaluator = [
    dict(type='PSNR', compare_input=True),
    dict(type='SSIM', compare_input=True)
]
val_cfg = dict(type='ValLoop')
# The base config has none of them.
test_dataloader = dict(val_dataloader, _delete_=True)
test_evaluator = val_evaluator
test_cfg = dict(_delete_=True, type='TestLoop')

iterations, warmup = 2000, 100
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=iterations,
    val_interval=iterations)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=warmup),
    dict(
        type='CosineAnnealingLR',
        T_max=iterations - warmup,
        by_epoch=False,
        begin=warmup,
        end=iterations)
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500))
custom_hooks = [
    dict(type='ReconstructionHook', interval=500),
    dict(type='ReseedHook')
]
log_processor = dict(by_epoch=False)
