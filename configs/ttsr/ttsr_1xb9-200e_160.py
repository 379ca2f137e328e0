custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# The paper's size: 160x160 pixels of an image and its reference, from a list of
# pairs. Adam, learning rate 1e-4, a tenth of it for the texture extractor.
default_scope = 'mmengine'
data_root = 'data/references/'
model = dict(type='TTSR')

load = [dict(type='LoadImageFromFile'), dict(type='LoadReference')]
degrade = [
    dict(type='Degrade', tasks='sr4', seed=0),
    dict(type='PackImage')
]
train_dataloader = dict(
    batch_size=9,
    num_workers=4,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ReferencePairs',
        ann_file='train.txt',
        data_root=data_root,
        pipeline=[*load, dict(type='CropWithReference', size=160), *degrade]))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ReferencePairs',
        ann_file='val.txt',
        data_root=data_root,
        pipeline=[*load, *degrade]))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='PSNR', luminance=True, compare_input=True),
    dict(type='SSIM', luminance=True, compare_input=True)
]
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=9)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=1e-4),
    paramwise_cfg=dict(custom_keys=dict(textures=dict(lr_mult=0.1))))
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=10)
param_scheduler = [
    dict(type='MultiStepLR', milestones=[100, 150], gamma=0.5, by_epoch=True)
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=2))
custom_hooks = [dict(type='ReseedHook')]
