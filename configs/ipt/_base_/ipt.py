# Data, schedule and hooks of IPT: 200 epochs with 256 images per step, learning rate
# 5e-5 falling to 2e-5. The collate function degrades a batch with one random task, so
# tasks differ between processes, and not all heads get a gradient.
default_scope = 'mmengine'
find_unused_parameters = True
data_root = 'data/images/'

tasks = ('sr2', 'sr3', 'sr4', 'noise30', 'noise50', 'rain')
crop = 48
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='one_task_collate', tasks=tasks, crop=crop),
    dataset=dict(
        type='UnlabelledImages',
        data_root=data_root + 'train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=0.5)
        ]))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='UnlabelledImages',
                data_root=data_root + 'val',
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='Degrade', tasks=task, seed=0),
                    dict(type='PackImage')
                ]) for task in tasks
        ]))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='PSNR', crop_border='scale', compare_input=True),
    dict(type='SSIM', crop_border='scale', compare_input=True)
]
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

model = dict(type='IPT', tasks=tasks, crop=crop)

auto_scale_lr = dict(enable=False, base_batch_size=256)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='Adam', lr=5e-5))
epochs = 200
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=20)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        eta_min_ratio=0.4,
        by_epoch=True,
        end=epochs,
        convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=2))
custom_hooks = [dict(type='ReseedHook')]
