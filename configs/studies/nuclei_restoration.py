_base_ = 'nuclei.py'

# Each neck with only the backbone pre-trained on ImageNet, and with backbone, neck
# and head also pre-trained to restore the same training images, without labels.
restoration = dict(
    config='pretraining/restoration_sem-fpn_mobilenet-v2_fpt_1xb8-2k_nuclei.py',
    images='images/train')
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
            pretrain=dict(settings=shared, **restoration))))
