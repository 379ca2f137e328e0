_base_ = '../ttsr/ttsr-mini_1xb4-2k_camvid-96.py'

# Enlarge CamVid's frames four times: without a reference, and with the previous
# frame. The second network is also tested with other references: the frame of one
# second before (or after, in the first second), one frame of another sequence for all
# images, and none.
# Training frames are a second apart, those of val a fifteenth. Choices are made on
# the sequence 0001TP, which is held out of train, as in the other studies of CamVid.
alone = [dict(type='LoadImageFromFile'), *_base_.frames.pipeline[2:]]
alone_test = [dict(type='LoadImageFromFile'), *_base_.degrade]
study = dict(
    title='CamVid val, enlarged four times: PSNR of the luma in dB',
    metric='PSNR',
    baseline='alone',
    rows=dict(
        alone=dict(
            train_dataloader=dict(dataset=dict(pipeline=alone)),
            val_dataloader=dict(dataset=dict(pipeline=alone_test)),
            test_dataloader=dict(dataset=dict(pipeline=alone_test))),
        previous=dict(
            tests=dict(
                second_before=dict(
                    test_dataloader=dict(dataset=dict(distance=15))),
                unrelated=dict(
                    test_dataloader=dict(
                        dataset=dict(reference='train/0001TP_007500.png'))),
                no_reference=dict(
                    test_dataloader=dict(dataset=dict(pipeline=alone_test)))))))

train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(sequences=['0006R0', '0016E5']))
val_dataloader = dict(
    num_workers=0,
    dataset=dict(
        data_prefix=dict(img_path='train'),
        sequences=['0001TP'],
        indices=list(range(0, 62, 6))))
test_dataloader = dict(
    num_workers=0, dataset=dict(indices=list(range(0, 101, 5))))

# 20 minutes of one core.
iterations = 1000
train_cfg = dict(max_iters=iterations, val_interval=iterations)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=iterations,
        by_epoch=False,
        end=iterations)
]
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1))
