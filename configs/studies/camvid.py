_base_ = [
    '../quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py', '_base_/necks.py'
]
custom_imports = dict(
    imports=['fpt_plugin', 'fpt_plugin.commands.study.camvid'],
    allow_failed_imports=False)

# Street scenes at 320x240. Choices are made on the sequence 0001TP, which is
# held out of train. The reported metric is on val, 101 consecutive frames; other
# parts of their sequence are in train.
study = dict(
    title='CamVid val: mIoU in %',
    metric='mIoU',
    shape=(240, 320))

size = (240, 320)
model = dict(
    data_preprocessor=dict(seg_pad_val=11, size=size),
    neck=dict(type='FPN'),
    decode_head=dict(
        num_classes=11,
        ignore_index=11,
        loss_decode=dict(
            _delete_=True, type='CrossEntropyLoss', avg_non_ignore=True)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(320, 240),
        ratio_range=(1.0, 1.5),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='LoadAnnotations'),  # at the size of the file
    dict(type='PackSegInputs')
]
data_root = 'data/camvid'
train_folders = dict(img_path='train', seg_map_path='trainannot')
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(
        _delete_=True,
        type='CamVid',
        data_root=data_root,
        data_prefix=train_folders,
        sequences=['0006R0', '0016E5'],
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CamVid',
        data_root=data_root,
        data_prefix=train_folders,
        sequences=['0001TP'],
        pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        _delete_=True,
        type='CamVid',
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='valannot'),
        pipeline=test_pipeline))
val_evaluator = dict(ignore_index=11)
test_evaluator = val_evaluator

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 100
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
