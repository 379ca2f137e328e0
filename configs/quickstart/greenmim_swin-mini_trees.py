_base_ = '../pretraining/greenmim_swin-mini-p4-w7_1xb16-2k_192.py'

# Random crops of the quickstart's photographs, without boxes; about a hundred steps
# per epoch.
pipeline = _base_.pipeline
# Aerial images have no preferred orientation.
pipeline[2] = dict(
    type='RandomFlip',
    prob=[0.25, 0.25, 0.25],
    direction=['horizontal', 'vertical', 'diagonal'])
train_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=45,
        dataset=dict(
            type='UnlabelledImages',
            data_root='data/trees/train',
            pipeline=pipeline)))
# The tiles that the quickstart's detector is evaluated on.
test_dataloader = dict(
    batch_size=1, num_workers=0, dataset=dict(data_root='data/trees/val'))

max_epochs = 24
train_cfg = dict(
    _delete_=True, by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        end=max_epochs,
        convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2))
log_processor = dict(by_epoch=True)
