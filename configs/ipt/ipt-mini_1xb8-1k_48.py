_base_ = '_base_/ipt.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# 1000 steps of a small model, 20 minutes of one core. Tails that enlarge add the
# bicubic image, because a short training would not learn it.
model = dict(
    channels=32, depth=2, num_heads=6, mlp_ratio=2., add_bicubic=True)
train_dataloader = dict(
    batch_size=8, num_workers=1, sampler=dict(type='InfiniteSampler'))
# Evaluate 20 photographs. Each takes seconds on a CPU, because it is restored in crops.
val_dataloader = dict(
    dataset=dict(datasets=[
        dict(data, indices=20)
        for data in _base_.val_dataloader.dataset.datasets
    ]))
test_dataloader = val_dataloader
evaluators = [
    dict(_base_.val_evaluator[0], compare_nl_means=True),
    dict(_base_.val_evaluator[1], compare_nl_means=True)
]
val_evaluator = evaluators
test_evaluator = evaluators
iterations, warmup = 1000, 50
auto_scale_lr = dict(base_batch_size=8)
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
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=250))
log_processor = dict(by_epoch=False)
