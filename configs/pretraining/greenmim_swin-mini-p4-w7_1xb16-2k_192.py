_base_ = ['_base_/images.py', '_base_/swin.py']
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# 2000 steps of a small Swin Transformer, on a CPU.
model = dict(
    type='GreenMIM',
    data_preprocessor=_base_.data_preprocessor,
    backbone=_base_.swin_mini,
    decoder=dict(embed_dims=128, num_heads=4))
pipeline = _base_.pipeline
pipeline[1].scale = 192
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(pipeline=pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (192, 192)
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

iterations, warmup = 2000, 100
train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=iterations,
    val_interval=iterations)
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
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
