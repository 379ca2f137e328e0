_base_ = 'bccd.py'

# A fifth of BCCD's labels. FPT with a backbone from ImageNet, and with backbone and
# neck also pre-trained to restore all training images without labels, except those
# for choices. Then the trained FPN detector is trained further: as it is, with FPT,
# and with FPT whose branches were pre-trained on the same images.
images, choices = 205, list(range(0, 205, 5))
length = 600
unlabelled = dict(
    train_dataloader=dict(
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            _delete_=True,
            type='mmdet.CocoDataset',
            ann_file='annotations/train.json',
            data_prefix=dict(img='JPEGImages/'),
            indices=[i for i in range(images) if i not in choices],
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='RandomResizedCrop', scale=128, area=(0.1, 0.5)),
                dict(
                    type='RandomFlip',
                    prob=[0.25, 0.25, 0.25],
                    direction=['horizontal', 'vertical', 'diagonal']),
                dict(type='Degrade', enlarge=True),
                dict(type='PackImage')
            ])),
    val_dataloader=None,
    val_evaluator=None,
    val_cfg=None)
more_epochs = 6
more = dict(
    train_cfg=dict(max_epochs=more_epochs, val_interval=1),
    param_scheduler={
        '0': dict(end=20),
        '1': dict(T_max=more_epochs, end=more_epochs)
    })
study = dict(
    title='BCCD val, 41 labelled images: AP in %',
    rows=dict(
        _delete_=True,
        fpn=dict(),
        default=dict(model=dict(neck=dict(type='FPT'))),
        default_restored=dict(
            model=dict(neck=dict(type='FPT')),
            baseline='default',
            pretrain=dict(
                config='pretraining/restoration_faster-rcnn_mobilenet-v2_fpt_'
                '1xb8-2k_trees.py',
                length=length,
                settings=unlabelled)),
        fpn_more=dict(after='fpn', **more),
        added=dict(
            after='fpn',
            baseline='fpn_more',
            model=dict(neck=dict(type='FPT')),
            **more),
        added_restored=dict(
            after='fpn',
            baseline='added',
            model=dict(neck=dict(type='FPT')),
            pretrain=dict(
                config='pretraining/restoration-identity_faster-rcnn_'
                'mobilenet-v2_fpt_1xb8-2k_trees.py',
                length=length,
                settings=unlabelled),
            **more)))

# Train on every 5th image from the first; for choices use every 5th from the 0th.
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=list(range(1, images, 5))))

# 252 steps.
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 50
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
