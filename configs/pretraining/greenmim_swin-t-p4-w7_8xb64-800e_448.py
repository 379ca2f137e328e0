_base_ = 'greenmim_swin-t-p4-w7_8xb256-800e_224.py'

pipeline = _base_.pipeline
pipeline[1].scale = 448
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (448, 448)
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
