_base_ = '_base_/finetune.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(tasks='rain')
train_dataloader = dict(collate_fn=dict(tasks='rain'))
dataset = _base_.val_dataloader.dataset.datasets[0]
dataset.pipeline[1].tasks = 'rain'
val_dataloader = dict(dataset=dict(datasets=[dataset]))
test_dataloader = val_dataloader
