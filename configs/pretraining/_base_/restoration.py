# Data, schedule and hooks of RestorationPretrainer, on a folder of images without
# labels.
_base_ = 'images.py'

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, area=(0.2, 1.)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Degrade', enlarge=True),
    dict(type='PackImage')
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=pipeline))
test_dataloader = test_evaluator = test_cfg = None

# Learning rate 1e-3 per 256 images of a step.
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0., bias_decay_mult=0., bypass_duplicate=True),
    clip_grad=dict(max_norm=1.))

epochs, warmup = 100, 5
train_cfg = dict(max_epochs=epochs)
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
