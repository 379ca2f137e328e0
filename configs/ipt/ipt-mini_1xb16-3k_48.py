_base_ = '_base_/ipt.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# 3000 steps of a small model, on a CPU. Tails that enlarge add the bicubic image,
# because a short training would not learn it.
model = dict(
    channels=32, depth=2, num_heads=6, mlp_ratio=2., add_bicubic=True)
train_dataloader = dict(
    batch_size=16, num_workers=1, sampler=dict(type='InfiniteSampler'))
iterations, warmup = 3000, 100
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.))
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
log_processor = dict(by_epoch=False)
