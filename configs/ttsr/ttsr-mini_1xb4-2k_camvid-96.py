_base_ = 'ttsr_1xb9-200e_160.py'

# 2000 steps of a small model on a CPU: video frames, each with the previous frame as
# its reference.
model = dict(
    channels=24,
    blocks=(4, 2, 2, 2),
    texture_channels=(16, 32, 48),
    add_bicubic=True)
data_root = 'data/camvid'
frames = dict(
    _delete_=True,
    type='ReferencePairs',
    data_root=data_root,
    data_prefix=dict(img_path='train'),
    sequences=['0001TP', '0006R0', '0016E5'],
    pipeline=[
        *_base_.load,
        dict(type='CropWithReference', size=96, margin=16),
        dict(type='Degrade', tasks='sr4'),
        dict(type='PackImage')
    ])
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=frames)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ReferencePairs',
        data_root=data_root,
        data_prefix=dict(img_path='val'),
        indices=list(range(0, 101, 10)),
        pipeline=[*_base_.load, *_base_.degrade]))
test_dataloader = val_dataloader

iterations = 2000
auto_scale_lr = dict(base_batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=4e-4), clip_grad=dict(max_norm=1.))
train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=iterations,
    val_interval=iterations)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=iterations,
        by_epoch=False,
        end=iterations)
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500))
log_processor = dict(by_epoch=False)
