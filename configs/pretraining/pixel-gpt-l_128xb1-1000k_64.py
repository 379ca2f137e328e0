_base_ = 'pixel-gpt-l_32xb4-1000k_32.py'

size = 64
model = dict(image_size=size)
pipeline = _base_.pipeline
pipeline[1].update(scale=size, min_side=size)
train_dataloader = dict(
    batch_size=1, dataset=dict(pipeline=pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (10000, size)
test_pipeline[2].crop_size = size
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = dict(train_dataset=dict(pipeline=pipeline))
