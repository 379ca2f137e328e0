_base_ = 'camvid.py'

# The study camvid with the optimiser of mmseg's convolutional models.
study = dict(title='CamVid val with SGD: mIoU in %')
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='SGD', lr=0.02, momentum=0.9, weight_decay=5e-4))
