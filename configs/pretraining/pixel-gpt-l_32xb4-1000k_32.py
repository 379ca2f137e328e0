_base_ = '_base_/pixel_gpt.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(size='L')
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
