_base_ = 'camvid.py'

# A tenth of CamVid's labels. Each neck with only the backbone pre-trained on
# ImageNet, and with backbone, neck and head also pre-trained to restore all training
# images without labels, except those for choices.
restoration = dict(
    config='pretraining/restoration_sem-fpn_mobilenet-v2_fpt_1xb8-2k_nuclei.py',
    images='train',
    length=600)
images, choices = 367, list(range(5, 367, 10))
shared = dict(
    train_dataloader=dict(
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            indices=[i for i in range(images) if i not in choices],
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='RandomResizedCrop', scale=128, area=(0.1, 0.5)),
                dict(type='RandomFlip', prob=0.5),
                dict(type='Degrade', enlarge=True),
                dict(type='PackImage')
            ])),
    val_dataloader=None,
    val_evaluator=None,
    val_cfg=None)
study = dict(
    title='CamVid val, 37 labelled images, with and without restoration before: '
    'mIoU in %',
    rows=dict(
        _delete_=True,
        fpn=dict(),
        fpn_restored=dict(
            pretrain=dict(
                settings=dict(
                    model=dict(neck=dict(type='mmseg.FPN')), **shared),
                **restoration)),
        default=dict(model=dict(neck=dict(type='FPT'))),
        default_restored=dict(
            model=dict(neck=dict(type='FPT')),
            baseline='default',
            pretrain=dict(settings=shared, **restoration))))

# Train on every 10th image of train; for choices use every 10th from the 5th.
train_dataloader = dict(
    dataset=dict(sequences=None, indices=list(range(0, images, 10))))
val_dataloader = dict(dataset=dict(sequences=None, indices=choices))

# 300 steps.
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs, val_interval=15)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 50
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
default_hooks = dict(checkpoint=dict(interval=5))
