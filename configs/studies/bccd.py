_base_ = [
    '../quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py', '_base_/necks.py'
]

# Blood cells of three sizes, images at half their size. Choices are made on every
# 5th image of train, which is held out. The reported metric is on val.
study = dict(
    title='BCCD val: AP in %',
    metric='bbox_mAP',
    factor=100,
    shape=(240, 320))

model = dict(
    neck=dict(type='FPN', num_outs=5),
    rpn_head=dict(
        anchor_generator=dict(scales=[4, 8], ratios=[0.7, 1.0, 1.4])),
    roi_head=dict(bbox_head=dict(num_classes=3)))

data_root = 'data/bccd'
metainfo = dict(
    classes=('Platelets', 'RBC', 'WBC'),
    palette=[(255, 200, 0), (220, 60, 60), (80, 80, 230)])
resize = dict(type='Resize', scale=(320, 240), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    resize,
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor', 'instances'))
]
images = 205
held_out = list(range(0, images, 5))
part = dict(
    _delete_=True,
    type='CocoDataset',
    metainfo=metainfo,
    data_root=data_root,
    ann_file='annotations/train.json',
    data_prefix=dict(img='JPEGImages/'))
train_dataloader = dict(
    num_workers=1,
    persistent_workers=True,
    dataset=dict(
        part,
        indices=[i for i in range(images) if i not in held_out],
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        part, test_mode=True, indices=held_out, pipeline=test_pipeline))
test_dataloader = dict(
    dataset=dict(
        part,
        test_mode=True,
        ann_file='annotations/val.json',
        pipeline=test_pipeline))
# Without an annotation file, the metric uses the boxes of the tested images.
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 80
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
