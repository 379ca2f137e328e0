_base_ = ['camvid.py', '../pretraining/_base_/swin.py']

# A small Swin Transformer with Semantic FPN on a tenth of CamVid's labels, from
# random weights and from two kinds of pre-training on the training images without
# labels, except those for choices. Both take the same time on one core: a step of
# SimMIM takes 3.4 times as long as a step of GreenMIM, with data loading.
images, choices = 367, list(range(5, 367, 10))
mini = dict(images='train', settings=dict(
    train_dataloader=dict(
        num_workers=0,
        persistent_workers=False,
        dataset=dict(indices=[i for i in range(images) if i not in choices])),
    default_hooks=dict(logger=dict(interval=20), checkpoint=dict(interval=100))))
study = dict(
    title='CamVid val, 37 labelled images: mIoU in %',
    baseline='random',
    rows=dict(
        _delete_=True,
        random=dict(),
        greenmim=dict(pretrain=dict(
            config='pretraining/greenmim_swin-mini-p4-w7_1xb16-2k_192.py',
            length=2000,
            **mini)),
        simmim=dict(pretrain=dict(
            config='pretraining/simmim_swin-mini-p4-w7_1xb16-2k_192.py',
            length=590,
            **mini))))

model = dict(
    backbone=dict(_base_.swin_mini, _delete_=True, type='SwinTransformer'),
    neck=dict(in_channels=[32, 64, 128, 256]))

# Train on every 10th image of train; for choices use every 10th from the 5th.
train_dataloader = dict(
    dataset=dict(sequences=None, indices=list(range(0, images, 10))))
val_dataloader = dict(dataset=dict(sequences=None, indices=choices))

max_epochs = 60
train_cfg = dict(max_epochs=max_epochs, val_interval=30)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 50
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
default_hooks = dict(checkpoint=dict(interval=5))
