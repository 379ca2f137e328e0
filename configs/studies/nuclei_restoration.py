_base_ = 'nuclei.py'

# Each neck with only the backbone pre-trained on ImageNet, and with backbone, neck
# and head also pre-trained to restore the same training images, without labels.
restoration = dict(
    config='pretraining/restoration_sem-fpn_mobilenet-v2_fpt_1xb8-2k_nuclei.py',
    images='images/train',
    length=600)
shared = dict(
    train_dataloader=dict(
        num_workers=0,
        persistent_workers=False,
        dataset=dict(indices=_base_.train_dataloader.dataset['indices'])),
    val_dataloader=None,
    val_evaluator=None,
    val_cfg=None)
study = dict(
    title="The quickstart's nuclei, with and without restoration before: mIoU in %",
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

# 280 steps on crops of a quarter of a tile.
train_pipeline = _base_.train_pipeline
train_pipeline.insert(3, dict(type='RandomCrop', crop_size=(256, 256)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(
    data_preprocessor=dict(
        size=(256, 256), test_cfg=dict(size=(512, 512))))
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs, val_interval=20)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 20
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
