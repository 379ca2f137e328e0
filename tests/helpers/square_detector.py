"""The config of a small detector, for the data of write_coco_squares in ``data/``.

An epoch has two iterations.
"""

from helpers.graft_detectors import retinanet

MODEL = retinanet(dict(
    type='FPT', in_channels=[16, 32, 64], out_channels=16, num_outs=3)).model.to_dict()
MODEL['backbone']['out_indices'] = (1, 2, 3)
MODEL['bbox_head']['num_classes'] = 1
MODEL['bbox_head']['anchor_generator'].update(octave_base_scale=2, strides=[8, 16, 32])
DETECTOR = f"""
default_scope = 'mmdet'
model = {MODEL!r}""" + """
dataset = dict(
    type='CocoDataset', metainfo=dict(classes=('square', )),
    data_root='data', ann_file='annotations.json',
    data_prefix=dict(img='images/'))
load = dict(type='LoadImageFromFile')
boxes = dict(type='LoadAnnotations', with_bbox=True)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=[load, boxes, dict(type='PackDetInputs')], **dataset))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True, pipeline=[
        load, dict(type='Resize', scale=(64, 64), keep_ratio=True), boxes,
        dict(type='PackDetInputs', meta_keys=(
            'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))],
        **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file='data/annotations.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=2, milestones=[1])]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1),
    visualization=dict(type='DetVisualizationHook'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends)
randomness = dict(seed=0)
"""
