_base_ = '_base_/restoration_mini.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# Backbone and neck of the quickstart's detector, on its training images.
model = dict(
    type='RestorationPretrainer',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='mmdet.MobileNetV2',
        out_indices=(1, 2, 4, 7),
        frozen_stages=2,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint='data/pretrained/mobilenet_v2.pth')),
    neck=dict(
        type='FPT',
        in_channels=[24, 32, 96, 1280],
        out_channels=128,
        num_outs=5))

data_root = 'data/trees/'
train_dataloader = dict(dataset=dict(data_root=data_root + 'train'))
val_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(dataset, data_root=data_root + 'val')
            for dataset in _base_.val_dataloader.dataset.datasets
        ]))
test_dataloader = val_dataloader
