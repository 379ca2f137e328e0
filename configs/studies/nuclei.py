_base_ = [
    '../quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py', '_base_/necks.py'
]

# The quickstart's segmentor. Choices are made on every 5th tile of train, which is
# held out. The reported metric is on the quickstart's validation tiles.
study = dict(
    title="The quickstart's nuclei: mIoU in %",
    metric='mIoU',
    shape=(512, 512),
    data='nuclei')

model = dict(neck=dict(type='FPN'))
images = 27
held_out = list(range(0, images, 5))
train_dataloader = dict(
    dataset=dict(indices=[i for i in range(images) if i not in held_out]))
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        indices=held_out))
