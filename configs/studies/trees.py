_base_ = [
    '../quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py', '_base_/necks.py'
]

# The quickstart's detector. Choices are made on every 5th tile of train, which is
# held out. The reported metric is on the quickstart's validation tiles.
study = dict(
    title="The quickstart's trees: AP in %",
    metric='bbox_mAP',
    factor=100,
    shape=(512, 512),
    data='trees')

model = dict(neck=dict(type='FPN', num_outs=5))
images = 36
held_out = list(range(0, images, 5))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor', 'instances'))
]
train_dataloader = dict(
    dataset=dict(indices=[i for i in range(images) if i not in held_out]))
val_dataloader = dict(
    dataset=dict(
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        indices=held_out,
        pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
# Without an annotation file, the metric uses the boxes of the tested images.
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator
